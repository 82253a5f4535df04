#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu_worker/cuda/cuda_weights.h"
#include "gpu_worker/cuda/device_memory.h"
#include "gpu_worker/cuda/kernels/prefill.h"
#include "gpu_worker/cuda/step_graph.h"
#include "models/bundle_layout.h"
#include "models/model_config.h"

namespace isotherm::gpu {

// Steps of many rows, by matrix products: layer outside, tiles of rows inside. A layer's neurons come
// in slices that are gathered, hot ones from the pool and cold ones over PCIe beside the products, and
// multiplied masked by each row's own active set. The same step as a StepGraph's: inputs, state and
// results lie in the same places.
class PrefillPass {
 public:
  struct Parts {
    const ModelConfig* config = nullptr;
    const BundleLayout* layout = nullptr;
    const CudaWeights* weights = nullptr;
    StepBuffersCuda buffers;  // x, z, active, rope, logits, inputs and state serve max_rows
    StepInputs inputs;
    uint16_t* kv = nullptr;
    int32_t kv_pages = 0;
    const unsigned char* pool = nullptr;
    const std::byte* host_inputs = nullptr;
    std::byte* host_results = nullptr;
    int64_t logits_offset = 0;
    int32_t max_rows = 0;
  };
  // Takes its memory and loads what it will run. FailedPrecondition without cuBLAS.
  static absl::StatusOr<std::unique_ptr<PrefillPass>> Create(const Parts& parts,
                                                             cudaStream_t stream);
  ~PrefillPass();

  struct Step {
    int32_t rows = 0, logits = 0;
    int64_t page_tables = 0;
    // Of each layer, the neurons that this side computes when no row is looked at; hot and cold.
    std::vector<std::pair<int32_t, int32_t>> counts;
  };
  // Queues the step, whose inputs are filled in. May wait for parts of it.
  absl::Status Launch(const Step& step, cudaStream_t stream);

  int64_t bytes() const { return memory_.bytes() + workspace_.bytes(); }

 private:
  static constexpr int kBuffers = 2;  // slices under way over PCIe
  struct Slice {
    int32_t layer = 0, first = 0, count = 0;  // of the layer's list of cold neurons
  };
  explicit PrefillPass(const Parts& parts) : parts_(parts) {}
  absl::Status Allocate();
  StepPointers Pointers() const;
  NormWeights NormOf(const CudaWeights::Norm& norm) const;
  // y[rows, w.rows] = (beta *) y + x * w^T; x in 16 bits, `low` null or what it lacks.
  absl::Status Product(const DeviceMatrix& w, const uint16_t* x, const uint16_t* low, bool exact_w,
                       bool bf16, int64_t rows, float beta, float* y, int64_t y_stride,
                       cudaStream_t stream);
  absl::Status Gemm(bool bf16, int64_t m, int64_t n, int64_t k, float alpha, const uint16_t* w,
                    int64_t w_stride, const uint16_t* x, int64_t x_stride, float beta, float* y,
                    int64_t y_stride);
  absl::Status Attend(const Step& step, int32_t layer, cudaStream_t stream);
  absl::Status Predict(const Step& step, int32_t layer, cudaStream_t stream);
  absl::Status Neurons(const Step& step, int32_t layer, cudaStream_t stream);
  absl::Status MultiplySlice(const Step& step, int32_t layer, const uint16_t* bundles,
                             const int32_t* ids, int32_t count, cudaStream_t stream);
  absl::Status List(const Step& step, int32_t layer, cudaStream_t stream);
  // Queues gathers of cold slices until `slices` are under way or done.
  void GatherAhead(size_t slices);
  void AddSlices(int32_t layer, int32_t cold);

  const Parts parts_;
  cublasHandle_t cublas_ = nullptr;
  cudaStream_t copy_stream_ = nullptr;
  cudaEvent_t ready_[kBuffers] = {}, free_[kBuffers] = {}, listed_ = nullptr;
  DeviceBytes memory_, workspace_;
  PinnedBytes counts_;
  int64_t tile_rows_ = 0;
  int32_t slice_neurons_ = 0;
  // Device memory.
  uint16_t *h16_ = nullptr, *low16_ = nullptr;      // [tile, widest input]
  float* wide_ = nullptr;                           // [tile, widest output]
  float *q_ = nullptr, *attention_ = nullptr;       // [tile, q_dim]
  float* hidden_ = nullptr;                         // [tile, rank]
  float *gate_ = nullptr, *up_ = nullptr;           // [tile, slice]
  uint16_t* values_ = nullptr;                      // [tile, slice]
  uint16_t* slices_[kBuffers + 1] = {};             // bundles; the last: hot ones, decoded weights
  int64_t slice_elements_ = 0;
  int32_t *hot_ids_ = nullptr, *hot_slots_ = nullptr;
  int32_t* cold_ids_[2] = {};  // by layer parity
  // Of the running step.
  std::vector<Slice> plan_;
  size_t gathered_ = 0, used_ = 0;
  int32_t num_hot_ = 0;  // of the layer listed last
};

}  // namespace isotherm::gpu
