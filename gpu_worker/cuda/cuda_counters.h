#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu_worker/cuda/device_memory.h"
#include "gpu_worker/device.h"

namespace isotherm::gpu {

// What a CUDA device counts: its kernels each neuron, in device memory and without end; the host
// steps, rows and, of one decode step in kTimeEvery, times. Reading copies the kernels' counts out
// on a stream of its own, beside whatever runs.
class CudaCounters {
 public:
  static constexpr uint64_t kTimeEvery = 16;

  // Device addresses; they stay. `read`: bundles read over PCIe.
  struct Arrays {
    const uint32_t *predicted = nullptr, *fired = nullptr;  // [num_layers, num_neurons]
    const uint64_t* read = nullptr;                         // [num_layers]
  };
  // has_predictor: else every row counts as having predicted every neuron.
  static absl::StatusOr<std::unique_ptr<CudaCounters>> Create(int64_t num_layers,
                                                              int64_t num_neurons,
                                                              int64_t bundle_bytes,
                                                              bool has_predictor,
                                                              const Arrays& arrays);
  ~CudaCounters();

  // By the thread of steps. `decode`: every row samples.
  void AddStep(int64_t epoch, int64_t rows, bool decode);
  // Whether the step just added is to be timed, if it can be.
  bool TimesDue() const { return times_due_; }
  // The same of the next step, if it is of decoding and no other comes between.
  bool NextTimesDue() const;
  // exact: of the layer's rows. `timed`: its times and the bytes they are of; null: none were
  // taken.
  void AddLayer(int64_t layer, int64_t rows, int64_t exact, const LayerCounters* timed);

  // One thread at a time, any thread but that of steps.
  absl::Status Read(NeuronCounters* counters);

 private:
  CudaCounters(int64_t num_layers, int64_t num_neurons, int64_t bundle_bytes, bool has_predictor,
               const Arrays& arrays);

  const int64_t num_layers_, num_neurons_, bundle_bytes_;
  const bool has_predictor_;
  const Arrays arrays_;
  int device_ = 0;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t copied_ = nullptr;
  PinnedBytes staging_;  // predicted, fired, read
  bool times_due_ = false;
  mutable std::mutex mu_;
  NeuronCounters totals_;  // without the arrays of neurons
};

}  // namespace isotherm::gpu
