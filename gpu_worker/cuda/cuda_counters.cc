#include "gpu_worker/cuda/cuda_counters.h"

#include <algorithm>

#include "common/base/status_macros.h"

namespace isotherm::gpu {

CudaCounters::CudaCounters(int64_t num_layers, int64_t num_neurons, int64_t bundle_bytes,
                           bool has_predictor, const Arrays& arrays)
    : num_layers_(num_layers),
      num_neurons_(num_neurons),
      bundle_bytes_(bundle_bytes),
      has_predictor_(has_predictor),
      arrays_(arrays) {
  totals_.layers.resize(static_cast<size_t>(num_layers));
}

absl::StatusOr<std::unique_ptr<CudaCounters>> CudaCounters::Create(int64_t num_layers,
                                                                   int64_t num_neurons,
                                                                   int64_t bundle_bytes,
                                                                   bool has_predictor,
                                                                   const Arrays& arrays) {
  std::unique_ptr<CudaCounters> out(
      new CudaCounters(num_layers, num_neurons, bundle_bytes, has_predictor, arrays));
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaGetDevice(&out->device_));
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaStreamCreateWithFlags(&out->stream_, cudaStreamNonBlocking));
  // Sleeps instead of spinning: nobody waits for it.
  ISOTHERM_CUDA_RETURN_IF_ERROR(
      cudaEventCreateWithFlags(&out->copied_, cudaEventDisableTiming | cudaEventBlockingSync));
  ISOTHERM_ASSIGN_OR_RETURN(out->staging_, PinnedBytes::Make(num_layers * (8 * num_neurons + 8)));
  return out;
}

CudaCounters::~CudaCounters() {
  if (stream_ != nullptr) {
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }
  if (copied_ != nullptr) cudaEventDestroy(copied_);
}

void CudaCounters::AddStep(int64_t epoch, int64_t rows, bool decode) {
  std::lock_guard lock(mu_);
  if (totals_.steps > 0 && epoch != totals_.epoch) ++totals_.epoch_changes;
  totals_.epoch = epoch;
  ++totals_.steps;
  if (decode) {
    ++totals_.decode_steps;
    totals_.decode_rows += static_cast<uint64_t>(rows);
  }
  times_due_ = decode && totals_.decode_steps % kTimeEvery == 0;
}

bool CudaCounters::NextTimesDue() const {
  std::lock_guard lock(mu_);
  return (totals_.decode_steps + 1) % kTimeEvery == 0;
}

void CudaCounters::AddLayer(int64_t layer, int64_t rows, int64_t exact,
                            const LayerCounters* timed) {
  std::lock_guard lock(mu_);
  LayerCounters& to = totals_.layers[static_cast<size_t>(layer)];
  to.tokens += static_cast<uint64_t>(rows - exact);
  to.exact_tokens += static_cast<uint64_t>(exact);
  if (timed == nullptr) return;
  to.timed_steps += timed->timed_steps;
  to.gpu_ns += timed->gpu_ns;
  to.cpu_ns += timed->cpu_ns;
  to.wait_ns += timed->wait_ns;
  to.merge_ns += timed->merge_ns;
  to.hot_bytes += timed->hot_bytes;
  to.timed_cold_bytes += timed->timed_cold_bytes;
}

absl::Status CudaCounters::Read(NeuronCounters* counters) {
  const auto each = static_cast<size_t>(num_layers_ * num_neurons_);
  auto* const predicted = staging_.as<uint32_t>();
  auto* const fired = predicted + each;
  auto* const read = reinterpret_cast<uint64_t*>(fired + each);
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaSetDevice(device_));
  const auto copy = [&](void* to, const void* from, size_t bytes) {
    return CudaStatus(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_),
                      "reading counters");
  };
  ISOTHERM_RETURN_IF_ERROR(copy(predicted, arrays_.predicted, each * sizeof(uint32_t)));
  ISOTHERM_RETURN_IF_ERROR(copy(fired, arrays_.fired, each * sizeof(uint32_t)));
  ISOTHERM_RETURN_IF_ERROR(
      copy(read, arrays_.read, static_cast<size_t>(num_layers_) * sizeof(uint64_t)));
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaEventRecord(copied_, stream_));
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaEventSynchronize(copied_));
  counters->predicted.assign(predicted, predicted + each);
  counters->fired.assign(fired, fired + each);
  {
    std::lock_guard lock(mu_);
    counters->epoch = totals_.epoch;
    counters->epoch_changes = totals_.epoch_changes;
    counters->steps = totals_.steps;
    counters->decode_steps = totals_.decode_steps;
    counters->decode_rows = totals_.decode_rows;
    counters->layers = totals_.layers;
  }
  for (int64_t l = 0; l < num_layers_; ++l) {
    LayerCounters& layer = counters->layers[static_cast<size_t>(l)];
    layer.cold_bytes = read[l] * static_cast<uint64_t>(bundle_bytes_);
    if (has_predictor_) continue;
    const auto first = counters->predicted.begin() + l * num_neurons_;
    std::fill(first, first + num_neurons_, static_cast<uint32_t>(layer.tokens));
  }
  return absl::OkStatus();
}

}  // namespace isotherm::gpu
