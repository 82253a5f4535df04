#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu_worker/cuda/device_memory.h"
#include "gpu_worker/cuda/kernels/prefill.h"
#include "gpu_worker/cuda/share_level.h"
#include "gpu_worker/cuda/step_parts.h"

namespace isotherm::gpu {

// Steps of many rows, by matrix products: layer outside, rows inside. A layer's neurons come in
// slices, hot ones from the pool and cold ones over PCIe beside the products, and are multiplied
// masked by each row's own active set. A layer that is mostly cold is copied as it lies in the
// arena, hot neurons too: the copy engine is faster than a gathering kernel and leaves the
// multiprocessors alone. Few rows share the cold neurons with the cpu side. The same step as a
// StepGraph's: inputs, state and results lie in the same places.
class PrefillPass {
 public:
  struct Limits {
    int32_t max_rows = 0;    // that x, z, active, rope, logits, inputs and state serve
    int32_t graph_rows = 0;  // that hidden and attention_scratch serve
  };
  // Takes its memory and loads what it will run. FailedPrecondition without cuBLAS.
  static absl::StatusOr<std::unique_ptr<PrefillPass>> Create(const StepParts& parts,
                                                             const Limits& limits,
                                                             cudaStream_t stream);
  ~PrefillPass();

  // More rows never share a step with the cpu side.
  static constexpr int32_t kMostSharedRows = 256;

  struct Layer {
    int32_t hot = 0, cold = 0;  // neurons
    int32_t first_slot = -1;    // of the hot ones, where they lie one behind the other in the pool
    // Cold neurons with ids from `top` on, at most slice_neurons(), are fetched before the active
    // ones are known.
    int32_t top = 0, num_top = 0;
    const std::byte* arena = nullptr;  // the layer's bundles in page-locked memory
    bool trace = false;
  };
  struct Step {
    int32_t rows = 0, logits = 0;
    int64_t page_tables = 0;
    bool shared = false;          // with the cpu side that the header names
    ShareLevel* level = nullptr;  // what of it, and learns; null: cold ids below the cut
    std::vector<Layer> layers;    // [num_layers]
    std::function<void()>
        while_waiting;  // called again and again while Launch waits for the device
  };
  // Queues the step, whose inputs are filled in. May wait for parts of it.
  absl::Status Launch(const Step& step, cudaStream_t stream);

  int32_t slice_neurons() const { return slice_neurons_; }
  // Of the last step: bundles of the layer that were read over PCIe.
  int32_t Read(int32_t layer) const;
  int64_t bytes() const { return memory_.bytes() + workspace_.bytes(); }

 private:
  static constexpr int kBuffers = 2;  // slices under way over PCIe
  enum class From { kListed, kTop, kIds };
  struct Slice {
    int32_t layer = 0, first = 0,
            count = 0;  // of a list of the layer's cold neurons, or of its ids
    From from = From::kListed;
  };
  // 16-bit weights of neurons, `stride` elements apart, a neuron's rows `row` elements.
  struct Weights {
    const uint16_t* data = nullptr;
    int64_t stride = 0, row = 0;
  };
  // What a slice's products are of: listed ids, or first_id and those behind it.
  struct Ids {
    const int32_t* list = nullptr;
    int32_t first_id = 0, count = 0;
    bool over_pcie = false;
  };
  PrefillPass(const StepParts& parts, const Limits& limits) : parts_(parts), limits_(limits) {}
  absl::Status Allocate();
  // Columns [first, last) of y[rows, w.rows] = (beta *) y + x * w^T; x in 16 bits, `low` null or
  // what it lacks. Columns of y up to a multiple of 8 may be overwritten, with zeros.
  absl::Status Product(const DeviceMatrix& w, int64_t first, int64_t last, const uint16_t* x,
                       const uint16_t* low, bool exact_w, bool bf16, int64_t rows, float beta,
                       float* y, int64_t y_stride, cudaStream_t stream);
  absl::Status Gemm(bool bf16, int64_t m, int64_t n, int64_t k, float alpha, const uint16_t* w,
                    int64_t w_stride, const uint16_t* x, int64_t x_stride, float beta, float* y,
                    int64_t y_stride);
  absl::Status Attend(const Step& step, int32_t layer, cudaStream_t stream);
  absl::Status Predict(const Step& step, int32_t layer, cudaStream_t stream);
  absl::Status Neurons(const Step& step, int32_t layer, cudaStream_t stream);
  absl::Status HotNeurons(const Step& step, int32_t layer, cudaStream_t stream);
  absl::Status Multiply(const Step& step, int32_t layer, const Weights& weights, const Ids& ids,
                        cudaStream_t stream);
  // The layer's lists, and its cold slices to the plan.
  absl::Status List(const Step& step, int32_t layer, cudaStream_t stream);
  int32_t LastListed(const Step& step, int32_t layer) const;
  // The layer's list of those fetched early, and them to the plan.
  absl::Status ListTop(const Step& step, int32_t layer, cudaStream_t stream);
  const int32_t* ListOf(const Slice& slice) const;  // null: of ids
  // Queues copies and gathers of cold slices until `slices` are under way or done.
  absl::Status FetchAhead(const Step& step, size_t slices);
  void AddSlices(int32_t layer, int32_t neurons, From from);
  bool Whole(const Step& step, int32_t layer) const;
  void Mark(const Step& step, int32_t layer, uint64_t LayerTrace::*what, cudaStream_t stream);

  const StepParts parts_;
  const Limits limits_;
  cublasHandle_t cublas_ = nullptr;
  cudaStream_t copy_stream_ = nullptr;
  cudaEvent_t ready_[kBuffers] = {}, free_[kBuffers] = {}, listed_ = nullptr, top_listed_ = nullptr;
  DeviceBytes memory_, workspace_;
  PinnedBytes counts_;
  int64_t tile_rows_ = 0;      // of attention
  int64_t pass_rows_ = 0;      // of everything else
  int64_t score_neurons_ = 0;  // at a time
  int32_t slice_neurons_ = 0;
  // Device memory. The three groups below lie over each other: a layer's parts follow one another.
  uint16_t *h16_ = nullptr, *low16_ = nullptr;  // [tile, widest input of attention]
  float* qkv_ = nullptr;                        // [tile, qkv_dim]
  float *q_ = nullptr, *attention_ = nullptr;   // [tile, q_dim]

  float* hidden_ = nullptr;                                  // [pass, rank]
  uint16_t *x_high_ = nullptr, *x_low_ = nullptr;            // [pass, model_dim]; then, over them,
  uint16_t *hidden_high_ = nullptr, *hidden_low_ = nullptr;  // [pass, rank]
  float* scores_ = nullptr;                                  // [pass, score_neurons_]

  float *gate_ = nullptr, *up_ = nullptr;  // [pass, slice]
  uint16_t* values_ = nullptr;             // [pass, slice]

  uint16_t* slices_[kBuffers + 1] = {};  // bundles; the last: hot ones, decoded weights
  int64_t slice_elements_ = 0;
  int32_t *hot_ids_[2] = {}, *hot_slots_[2] = {}, *cold_ids_[2] = {},
          *top_ids_[2] = {};    // by layer parity
  uint64_t* to_cpu_ = nullptr;  // [words]
  // Of the running step.
  std::vector<Slice> plan_;
  size_t fetched_ = 0, used_ = 0;
  std::vector<int32_t> num_hot_;  // of each layer listed
};

}  // namespace isotherm::gpu
