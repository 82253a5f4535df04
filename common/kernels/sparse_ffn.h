#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/kernels/sparse_ffn_tuning.h"
#include "common/kernels/work_hash.h"
#include "common/tensor/activation.h"
#include "common/tensor/dtype.h"
#include "common/threading/thread_pool.h"

namespace isotherm {

// A layer's neurons, each one bundle of `rows` weight rows: [gate | up | down], or [up | down].
// Slot s starts at data + s * bundle_bytes, its row i at + i * row_bytes. The memory is the
// caller's; any alignment will do, 64 bytes is fastest.
struct BundleView {
  DType dtype = DType::kF16;
  int rows = 3;
  int64_t model_dim = 0;
  int64_t row_bytes = 0;
  int64_t bundle_bytes = 0;
  const std::byte* data = nullptr;
  const int32_t* slot_of = nullptr;  // [num_neurons]; -1: not here. Null: slot == neuron id
  int64_t num_neurons = 0;
};

class SparseFfnWorkspace;

// partial[r, :] = sum over n computed for r of a(r, n) * down[n, :], where
//   a(r, n) = act(gate[n] . z[r]) * (up[n] . z[r])   with 3 rows in a bundle; with activate_up
//             act(up[n] . z[r]) is the second factor,
//   a(r, n) = act(up[n] . z[r] + up_bias[n])         with 2; no up_bias: 0,
// over the ids n in [first_neuron, last_neuron) whose bit is set in active[r] and in owned, and
// whose slot is not -1: a neuron that is skipped gives 0, whatever its bias. All products and sums
// in f32; weights are finite.
// Source: ReGLU, Shazeer 2020, arXiv:2002.05202; split by neuron as in PowerInfer, SOSP 2024.
struct SparseFfnParams {
  BundleView bundles;
  // [num_rows, model_dim], exactly one of the three: raw F16 or BF16, or F32 values that already
  // are 16-bit ones (whoever makes z rounds it, once).
  const uint16_t* z_f16 = nullptr;
  const uint16_t* z_bf16 = nullptr;
  const float* z = nullptr;
  int64_t num_rows = 0;
  const uint64_t* active = nullptr;  // [num_rows, ceil(num_neurons / 64)]
  const uint64_t* owned = nullptr;   // [ceil(num_neurons / 64)], or null: all
  int64_t first_neuron = 0;
  int64_t last_neuron = 0;  // exclusive
  Activation activation = Activation::kRelu;
  bool activate_up = false;        // 3 rows only
  const float* up_bias = nullptr;  // [num_neurons], by id; 2 rows only
  float* partial = nullptr;        // [num_rows, model_dim], overwritten
  // Both or neither. *work_hash becomes the sum over the pairs accumulated; one skipped because its
  // gate is shut counts as done.
  const NeuronHash* hash = nullptr;
  uint64_t* work_hash = nullptr;
  // [num_neurons], or null: rows whose gate was open are added to a neuron's word, which nobody
  // else writes during the call; others may read it.
  uint32_t* fired = nullptr;
  SparseFfnWorkspace* workspace = nullptr;
  int max_threads = 0;  // of the pool; 0: all
};

// Largest shapes that a workspace serves; memory is about
// num_threads * (max_rows + 5) * model_dim * 4 bytes.
struct SparseFfnLimits {
  int num_threads = 0;
  int64_t max_rows = 0;
  int64_t model_dim = 0;
  int64_t num_neurons = 0;
};

// All scratch of SparseFfn, so that a call allocates nothing. Used by one call at a time.
class SparseFfnWorkspace {
 public:
  // InvalidArgument for limits below 1; OutOfRange when their product does not fit.
  static absl::StatusOr<std::unique_ptr<SparseFfnWorkspace>> Create(const SparseFfnLimits& limits);
  ~SparseFfnWorkspace();

  const SparseFfnLimits& limits() const { return limits_; }
  // InvalidArgument outside the bounds of SparseFfnTuning. Not during a call.
  absl::Status SetTuning(const SparseFfnTuning& tuning);

  struct Shared;  // in sparse_ffn_workspace.h
  Shared& shared() { return *shared_; }
  const Shared& shared() const { return *shared_; }

 private:
  SparseFfnWorkspace(const SparseFfnLimits& limits, std::unique_ptr<Shared> shared);
  const SparseFfnLimits limits_;
  std::unique_ptr<Shared> shared_;
};

// InvalidArgument when shapes disagree, exceed the workspace or have no kernel. Blocks; one caller
// per pool and workspace. Threads that arrive late take no work and are not waited for.
//
// Where the call succeeds, `complete` runs once, on the calling thread, as soon as partial, the
// work hash and the counts below are final: other threads may still be on their way out.
absl::Status SparseFfn(
    const SparseFfnParams& params, ThreadPool& pool, absl::FunctionRef<void()> complete = [] {});

// Of the last call on this workspace.
struct SparseFfnCounts {
  int64_t pairs = 0;         // (row, neuron) pairs accumulated
  int64_t open_pairs = 0;    // of those, the ones whose gate was open
  int64_t bundles = 0;       // neurons computed, for whichever rows
  int64_t open_bundles = 0;  // of those, open in some row: their other weight rows were read
  // Weight bytes that were read of `view`.
  int64_t BytesRead(const BundleView& view) const {
    return view.row_bytes * (bundles + (view.rows - 1) * open_bundles);
  }
};
SparseFfnCounts CountsOf(const SparseFfnWorkspace& workspace);

}  // namespace isotherm
