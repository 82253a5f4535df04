// What a step of a CudaDevice left behind: its status, samples, counts and times.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "gpu_worker/cuda/cuda_device.h"

namespace isotherm::gpu {

absl::Status CudaDevice::StepStatus(const StepState& state) {
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
    case kStepNoNumbers:
      return absl::DataLossError(absl::StrCat("the logits of row ", state.failed_layer,
                                              " are not numbers; the model may be damaged"));
    case kStepNotBegun:
      return absl::AbortedError("the step before failed");
    default:
      return absl::InternalError(
          absl::StrCat("the cpu_worker failed or sent what no sound peer sends", in_layer()));
  }
}

absl::Status CudaDevice::Sample(const DeviceBatch& batch, const Flight& flight,
                                DeviceOutput* output) {
  const auto* const how = reinterpret_cast<const SampleRow*>(places_[flight.place].inputs.as<>() +
                                                             input_layout_.samples);
  int64_t at = 0;
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    SamplingState* const sampling = batch.rows[r].sampling;
    if (sampling == nullptr) continue;
    DeviceSample sample{.row = static_cast<int64_t>(r)};
    if (how[at].on_device != 0) {
      sample.token = TokensOf(flight.place)[at];
      if (sample.token >= 0) sampling->Take(sample.token);
    } else {
      sample.token = sampling->Sample(std::span(logits_.as<float>() + at * config_.vocab_size,
                                                static_cast<size_t>(config_.vocab_size)),
                                      &sample.logprobs);
    }
    ++at;
    if (sample.token < 0) {
      return absl::DataLossError(
          absl::StrCat("the logits of row ", r, " are not numbers; the model may be damaged"));
    }
    output->samples.push_back(std::move(sample));
  }
  return absl::OkStatus();
}

int64_t CudaDevice::ExactRows(const Flight& flight, size_t layer) const {
  if (!config_.sparse) return 0;
  const bool all = (flight.layers[layer].flags & kLayerExact) != 0;
  return all ? flight.num_rows : flight.num_exact;
}

void CudaDevice::CountRows(const Flight& flight) {
  for (size_t l = 0; l < flight.layers.size(); ++l)
    counters_->AddLayer(static_cast<int64_t>(l), flight.num_rows, ExactRows(flight, l), nullptr);
}

void CudaDevice::Count(const Flight& flight, DeviceOutput* output) {
  if (!flight.traced()) return CountRows(flight);
  const auto* const traces = places_[flight.place].traces.as<const LayerTrace>();
  const auto ns = [](uint64_t from, uint64_t to) { return to > from ? to - from : 0; };
  const auto us = [&](uint64_t from, uint64_t to) {
    return static_cast<float>(ns(from, to)) * 1e-3f;
  };
  for (size_t l = 0; l < flight.layers.size(); ++l) {
    const int64_t exact = ExactRows(flight, l);
    if ((flight.layers[l].flags & kLayerTrace) == 0) {
      counters_->AddLayer(static_cast<int64_t>(l), flight.num_rows, exact, nullptr);
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
            static_cast<uint64_t>(flight.in_products ? prefill_->Read(static_cast<int32_t>(l))
                                                     : t.read) *
            static_cast<uint64_t>(layout_.bundle_bytes)};
    // Exact rows would pass for expensive ones.
    counters_->AddLayer(static_cast<int64_t>(l), flight.num_rows, exact,
                        flight.timed && exact == 0 ? &times : nullptr);
    if ((flight.asked_flags[l] & kLayerTrace) == 0) continue;
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
