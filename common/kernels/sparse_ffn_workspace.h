#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "common/kernels/sparse_ffn.h"
#include "hwy/aligned_allocator.h"

namespace isotherm {

// Bounds the reduction's list of sources, which lives on the stack.
inline constexpr int kMaxSparseFfnThreads = 1024;

// InvalidArgument when shapes disagree, exceed the workspace or have no kernel.
absl::Status ValidateSparseFfn(const SparseFfnParams& params);

// What one thread of a SparseFfn call writes; nobody else does before it is done.
struct alignas(64) SparseFfnThread {
  bool used = false;  // took work: its accumulators count
  uint64_t work_hash = 0;
  int64_t num_open = 0;                        // pairs whose gate was open
  int64_t num_bundles = 0;                     // neurons computed, for whichever rows
  int64_t num_open_bundles = 0;                // of those, whose gate was open in some row
  hwy::AlignedFreeUniquePtr<float[]> sums;     // [max_rows, padded_dim]
  hwy::AlignedFreeUniquePtr<float[]> decoded;  // [4, padded_dim]: weight rows of a pass
  std::vector<int32_t> ids;                    // [num_neurons]: the active ones
  std::vector<int32_t> rows;                   // [max_rows]: rows with a neuron of the pass
  std::vector<uint8_t> row_neurons;            // [max_rows]: which of the pass's neurons
  std::vector<float> gates;                    // [max_rows, 4]
  std::vector<float> ups;                      // [max_rows, 4]
};

struct SparseFfnWorkspace::Shared {
  int64_t padded_dim = 0;                // model_dim rounded up to 32 floats
  hwy::AlignedFreeUniquePtr<float[]> z;  // [max_rows, padded_dim], zero in the padding
  std::vector<SparseFfnThread> threads;
  alignas(64) std::atomic<int64_t> cursor{0};  // next unclaimed position of the id list
};

}  // namespace isotherm
