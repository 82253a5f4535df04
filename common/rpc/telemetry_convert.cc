#include "common/rpc/telemetry_convert.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace isotherm::rpc {
namespace {

constexpr int kMaxLayers = 1024;
constexpr int64_t kMaxNeurons = int64_t{1} << 24;
constexpr size_t kMaxTextBytes = 256;

v1::LayerTelemetry ToProto(const LayerTelemetry& layer) {
  v1::LayerTelemetry out;
  const LayerCounters& counts = layer.counts;
  out.set_tokens(static_cast<int64_t>(counts.tokens));
  out.set_exact_tokens(static_cast<int64_t>(counts.exact_tokens));
  out.set_timed_steps(static_cast<int64_t>(counts.timed_steps));
  out.set_gpu_ns(static_cast<int64_t>(counts.gpu_ns));
  out.set_cpu_ns(static_cast<int64_t>(counts.cpu_ns));
  out.set_wait_ns(static_cast<int64_t>(counts.wait_ns));
  out.set_merge_ns(static_cast<int64_t>(counts.merge_ns));
  out.set_hot_bytes(static_cast<int64_t>(counts.hot_bytes));
  out.set_timed_cold_bytes(static_cast<int64_t>(counts.timed_cold_bytes));
  out.set_cold_bytes(static_cast<int64_t>(counts.cold_bytes));
  out.mutable_predicted_counts()->Add(layer.predicted.begin(), layer.predicted.end());
  out.mutable_activation_counts()->Add(layer.fired.begin(), layer.fired.end());
  return out;
}

LayerTelemetry FromProto(const v1::LayerTelemetry& layer) {
  LayerTelemetry out;
  LayerCounters& counts = out.counts;
  counts.tokens = static_cast<uint64_t>(layer.tokens());
  counts.exact_tokens = static_cast<uint64_t>(layer.exact_tokens());
  counts.timed_steps = static_cast<uint64_t>(layer.timed_steps());
  counts.gpu_ns = static_cast<uint64_t>(layer.gpu_ns());
  counts.cpu_ns = static_cast<uint64_t>(layer.cpu_ns());
  counts.wait_ns = static_cast<uint64_t>(layer.wait_ns());
  counts.merge_ns = static_cast<uint64_t>(layer.merge_ns());
  counts.hot_bytes = static_cast<uint64_t>(layer.hot_bytes());
  counts.timed_cold_bytes = static_cast<uint64_t>(layer.timed_cold_bytes());
  counts.cold_bytes = static_cast<uint64_t>(layer.cold_bytes());
  out.predicted.assign(layer.predicted_counts().begin(), layer.predicted_counts().end());
  out.fired.assign(layer.activation_counts().begin(), layer.activation_counts().end());
  return out;
}

bool AnyNegative(const v1::LayerTelemetry& layer) {
  return std::min({layer.tokens(), layer.exact_tokens(), layer.timed_steps(), layer.gpu_ns(),
                   layer.cpu_ns(), layer.wait_ns(), layer.merge_ns(), layer.hot_bytes(),
                   layer.timed_cold_bytes(), layer.cold_bytes()}) < 0;
}

}  // namespace

v1::ReportTelemetryRequest ToProto(const TelemetryReport& report) {
  v1::ReportTelemetryRequest out;
  out.set_instance_id(report.instance_id);
  out.set_model_digest(report.model_digest);
  out.set_sequence(report.sequence);
  out.set_interval_us(report.interval_us);
  out.set_epoch(report.epoch);
  out.set_epoch_changes(static_cast<int64_t>(report.epoch_changes));
  out.set_steps(static_cast<int64_t>(report.steps));
  out.set_decode_steps(static_cast<int64_t>(report.decode_steps));
  out.set_decode_rows(static_cast<int64_t>(report.decode_rows));
  out.set_num_neurons(report.num_neurons);
  for (const LayerTelemetry& layer : report.layers) *out.add_layers() = ToProto(layer);
  return out;
}

absl::StatusOr<TelemetryReport> FromProto(const v1::ReportTelemetryRequest& request) {
  const int64_t least = std::min({request.sequence() - 1, request.interval_us(), request.epoch(),
                                  request.epoch_changes(), request.steps(), request.decode_steps(),
                                  request.decode_rows(), request.num_neurons()});
  if (least < 0 || request.layers_size() > kMaxLayers || request.num_neurons() > kMaxNeurons ||
      request.instance_id().size() > kMaxTextBytes ||
      request.model_digest().size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a telemetry report with sequence ", request.sequence(), ", ",
                     request.layers_size(), " layers of ", request.num_neurons(),
                     " neurons and a least number of ", least, " is out of bounds"));
  }
  TelemetryReport out{.instance_id = request.instance_id(),
                      .model_digest = request.model_digest(),
                      .sequence = request.sequence(),
                      .interval_us = request.interval_us(),
                      .epoch = request.epoch(),
                      .epoch_changes = static_cast<uint64_t>(request.epoch_changes()),
                      .steps = static_cast<uint64_t>(request.steps()),
                      .decode_steps = static_cast<uint64_t>(request.decode_steps()),
                      .decode_rows = static_cast<uint64_t>(request.decode_rows()),
                      .num_neurons = request.num_neurons()};
  for (const v1::LayerTelemetry& layer : request.layers()) {
    for (const int count : {layer.predicted_counts_size(), layer.activation_counts_size()}) {
      if (count != 0 && count != request.num_neurons()) {
        return absl::InvalidArgumentError(absl::StrCat("a telemetry report has counts of ", count,
                                                       " neurons in a layer of ",
                                                       request.num_neurons()));
      }
    }
    if (AnyNegative(layer)) {
      return absl::InvalidArgumentError("a telemetry report has a negative number in a layer");
    }
    out.layers.push_back(FromProto(layer));
  }
  return out;
}

}  // namespace isotherm::rpc
