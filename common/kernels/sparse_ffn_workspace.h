#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "common/kernels/sparse_ffn.h"
#include "common/threading/countdown.h"
#include "hwy/aligned_allocator.h"

namespace isotherm {

// Bounds the reduction's list of sources, which lives on the stack.
inline constexpr int kMaxSparseFfnThreads = 1024;

// InvalidArgument when shapes disagree, exceed the workspace or have no kernel.
absl::Status ValidateSparseFfn(const SparseFfnParams& params);

// Many rows of z stay in the 16 bits that weights of this type are multiplied with, where they come
// in them: half of what each core's cache has to hold.
constexpr DType NarrowInput(DType weights) {
  return weights == DType::kBF16 ? DType::kBF16 : DType::kF16;
}
inline bool StaysNarrow(const SparseFfnParams& p) {
  return NarrowInput(p.bundles.dtype) == DType::kBF16 ? p.z_bf16 != nullptr : p.z_f16 != nullptr;
}

// The ids of a call as bits, masked by everything that leaves a neuron out, and where each word's
// first id stands among all. active_bits-inl.h.
struct ActiveBits {
  int64_t first_word = 0, last_word = 0;  // exclusive
  int64_t count = 0;
  std::vector<uint64_t> bits;   // [ceil(num_neurons / 64)]
  std::vector<int32_t> before;  // ids in earlier words
};

// How the positions of `count` ids are cut into chunks: whole ones, then halves for a round of all
// threads, then `tail`s for another, so that threads that claim chunks in order end together.
struct ChunkPlan {
  ChunkPlan() = default;
  ChunkPlan(int64_t num_ids, int num_threads, const SparseFfnTuning& tuning);

  struct Range {
    int64_t first = 0;
    int count = 0;  // 0: past the end
  };
  Range At(int64_t chunk) const;

 private:
  struct Tier {
    int64_t chunks = 0;  // of this size; the last one may be smaller
    int64_t size = 1;
    int64_t first = 0, last = 0;  // positions
  };
  Tier tiers_[3];
};

// What one thread of a SparseFfn call writes; nobody else does before it is done.
struct alignas(64) SparseFfnThread {
  uint32_t call = 0;  // the last one it took work of: its accumulators count in that one
  uint64_t work_hash = 0;
  SparseFfnCounts counts;
  const float* z = nullptr;                      // of a call of one row
  hwy::AlignedFreeUniquePtr<float[]> own_z;      // [row_stride]
  hwy::AlignedFreeUniquePtr<float[]> sums;       // [max_rows, row_stride]
  hwy::AlignedFreeUniquePtr<float[]> pair_sums;  // [max_rows, kMaxChunk, 16]: a pair's lanes
  ActiveBits active;
  // Pairs of a row of z and a neuron of the phase, neuron after neuron.
  std::vector<int32_t> pair_rows;   // [kMaxChunk * max_rows + 1]
  std::vector<int32_t> pair_first;  // [kMaxChunk + 1]: where a neuron's begin
  std::vector<float> scales;        // [max_rows, kMaxChunk]: gates, then activations of the pairs
  std::vector<float> ups;           // [max_rows, kMaxChunk]
  // The same pairs, row after row.
  std::vector<int32_t> row_first;    // [max_rows + 2]: where a row's begin
  std::vector<int32_t> row_weights;  // [max_rows * kMaxChunk]: which neuron of the phase
  std::vector<float> row_scales;     // [max_rows * kMaxChunk]
};

struct SparseFfnWorkspace::Shared {
  SparseFfnTuning tuning;
  int64_t row_stride = 0;  // elements from one row of z or sums to the next
  // [max_rows, row_stride], zero in the padding; elements of 16 bits where StaysNarrow().
  hwy::AlignedFreeUniquePtr<float[]> z;
  std::vector<SparseFfnThread> threads;

  // The call under way. Written before its section opens.
  uint32_t call = 0;
  ChunkPlan chunks;
  alignas(64) std::atomic<int64_t> next_chunk{0};
  alignas(64) std::atomic<int64_t> next_slice{0};
  Countdown ids_left;     // not accumulated yet
  Countdown slices_left;  // of partial, not summed yet
};

}  // namespace isotherm
