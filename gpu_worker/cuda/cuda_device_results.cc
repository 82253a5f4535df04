// What a step of a CudaDevice left behind: its status, samples, counts and times.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "gpu_worker/cuda/cuda_device.h"

namespace isotherm::gpu {

absl::Status CudaDevice::StepStatus() const {
  const StepState& state = *results_.as<const StepState>();
  const auto in_layer = [&] { return absl::StrCat(" in layer ", state.failed_layer); };
  switch (state.failure) {
    case kStepOk:
      return absl::OkStatus();
    case kStepDeadline:
      return absl::DeadlineExceededError(
          absl::StrCat("the cpu_worker did not answer in time", in_layer()));
    case kStepAborted:
      return absl::UnavailableError(absl::StrCat("the cpu_worker was lost", in_layer()));
    case kStepStaleEpoch:
      return absl::AbortedError("the cpu_worker does not know the step's epoch");
    case kStepNoColdSide:
      return absl::UnavailableError(
          "cold neurons are active and the cpu_worker is not attached; try again soon");
    default:
      return absl::InternalError(
          absl::StrCat("the cpu_worker failed or sent what no sound peer sends", in_layer()));
  }
}

absl::Status CudaDevice::Sample(const DeviceBatch& batch, DeviceOutput* output) {
  auto* const logits = reinterpret_cast<float*>(results_.as<>() + logits_offset_);
  int64_t at = 0;
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    if (batch.rows[r].sampling == nullptr) continue;
    DeviceSample sample{.row = static_cast<int64_t>(r)};
    const std::span<float> row(logits + at++ * config_.vocab_size,
                               static_cast<size_t>(config_.vocab_size));
    sample.token = batch.rows[r].sampling->Sample(row, &sample.logprobs);
    if (sample.token < 0) {
      return absl::DataLossError(
          absl::StrCat("the logits of row ", r, " are not numbers; the model may be damaged"));
    }
    output->samples.push_back(std::move(sample));
  }
  return absl::OkStatus();
}

// Of the last step; empty when no layer was traced.
absl::StatusOr<std::span<const LayerTrace>> CudaDevice::ReadTraces() {
  const bool traced = std::any_of(layer_steps_.begin(), layer_steps_.end(),
                                  [](const LayerStep& l) { return (l.flags & kLayerTrace) != 0; });
  if (!traced) return std::span<const LayerTrace>();
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(traces_.as<void>(), buffers_.traces,
                                                layer_steps_.size() * sizeof(LayerTrace),
                                                cudaMemcpyDeviceToHost, stream_));
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(stream_));
  return std::span(traces_.as<const LayerTrace>(), layer_steps_.size());
}

absl::Status CudaDevice::Count(const DeviceBatch& batch, DeviceOutput* output) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::span<const LayerTrace> traces, ReadTraces());
  const auto rows = static_cast<int64_t>(batch.rows.size());
  const int64_t exact_rows = std::count_if(batch.rows.begin(), batch.rows.end(),
                                           [](const DeviceRow& row) { return row.exact; });
  const auto ns = [](uint64_t from, uint64_t to) { return to > from ? to - from : 0; };
  const auto us = [&](uint64_t from, uint64_t to) {
    return static_cast<float>(ns(from, to)) * 1e-3f;
  };
  for (size_t l = 0; l < layer_steps_.size(); ++l) {
    const bool all_exact = (layer_steps_[l].flags & kLayerExact) != 0;
    const int64_t exact = !config_.sparse ? 0 : all_exact ? rows : exact_rows;
    if (traces.empty() || (layer_steps_[l].flags & kLayerTrace) == 0) {
      counters_->AddLayer(static_cast<int64_t>(l), rows, exact, nullptr);
      continue;
    }
    const LayerTrace& t = traces[l];
    const bool posted = t.posted > t.begin;
    const uint64_t gpu_end = std::max(t.gpu_done, t.streamed);
    const LayerCounters times{
        .timed_steps = 1,
        .gpu_ns = ns(t.activated, t.gpu_done),
        .cpu_ns = posted ? static_cast<uint64_t>(t.cpu_us * 1000.0f) : 0,
        .wait_ns = posted ? ns(gpu_end, t.resumed) : 0,
        .merge_ns = ns(t.resumed, t.merged),
        .hot_bytes = static_cast<uint64_t>(t.hot) * static_cast<uint64_t>(layout_.bundle_bytes),
        .timed_cold_bytes =
            static_cast<uint64_t>(in_products_ ? prefill_->Read(static_cast<int32_t>(l)) : t.read) *
            static_cast<uint64_t>(layout_.bundle_bytes)};
    // Exact rows would pass for expensive ones.
    counters_->AddLayer(static_cast<int64_t>(l), rows, exact,
                        counters_->TimesDue() && exact == 0 ? &times : nullptr);
    if (asked_traces_[l] == 0) continue;
    output->timings.push_back({.layer = static_cast<int32_t>(l),
                               .attention_us = us(t.begin, t.predict),
                               .predict_us = us(t.predict, t.activated),
                               .gpu_us = us(t.activated, t.gpu_done),
                               .cpu_us = t.cpu_us,
                               .wait_us = posted ? us(gpu_end, t.resumed) : 0,
                               .merge_us = us(t.resumed, t.merged),
                               .streamed_us = us(t.activated, t.streamed),
                               .active_neurons = t.active,
                               .hot_neurons = t.hot});
  }
  return absl::OkStatus();
}

std::vector<float> CudaDevice::Residual(int64_t rows) const {
  std::vector<float> out(static_cast<size_t>(rows * config_.model_dim));
  cudaMemcpy(out.data(), buffers_.x, out.size() * sizeof(float), cudaMemcpyDeviceToHost);
  return out;
}

std::vector<float> CudaDevice::Logits(int64_t rows) const {
  std::vector<float> out(static_cast<size_t>(rows * config_.vocab_size));
  cudaMemcpy(out.data(), buffers_.logits, out.size() * sizeof(float), cudaMemcpyDeviceToHost);
  return out;
}

}  // namespace isotherm::gpu
