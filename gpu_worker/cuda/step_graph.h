#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>

#include "absl/status/status.h"
#include "gpu_worker/cuda/step_parts.h"

namespace isotherm::gpu {

// The sequence of kernels of a step, launched one by one or, for small batches, as one graph that
// is captured once.
class StepGraph {
 public:
  // max_rows: of a step through here.
  StepGraph(const StepParts& parts, int32_t max_rows);
  ~StepGraph();

  // Captures the graphs of small batches and runs each kernel once with no rows, so that nothing is
  // loaded or allocated during a step. `stream` is idle.
  absl::Status Capture(cudaStream_t stream);

  // Queues a step of `rows` rows whose inputs are on the device, of which `logits` are wanted.
  absl::Status Launch(int32_t rows, int32_t logits, cudaStream_t stream);

 private:
  void Record(int32_t max_rows, int32_t logits, cudaStream_t stream);
  absl::Status CaptureOne(int32_t rows, cudaStream_t stream);

  const StepParts parts_;
  const int32_t max_rows_;
  cudaStream_t side_stream_ = nullptr;  // reads over PCIe beside parallel attention
  cudaEvent_t fork_ = nullptr, join_ = nullptr;
  std::map<int32_t, cudaGraphExec_t> graphs_;  // by rows
};

}  // namespace isotherm::gpu
