#include "common/telemetry/report_builder.h"

#include <algorithm>
#include <cstring>

namespace isotherm {
namespace {

LayerCounters Minus(const LayerCounters& now, const LayerCounters& before) {
  constexpr size_t kWords = sizeof(LayerCounters) / sizeof(uint64_t);
  uint64_t a[kWords], b[kWords];
  std::memcpy(a, &now, sizeof(a));
  std::memcpy(b, &before, sizeof(b));
  for (size_t i = 0; i < kWords; ++i) a[i] -= b[i];
  LayerCounters out;
  std::memcpy(&out, a, sizeof(a));
  return out;
}

// Neurons [begin, begin + count) modulo 2^32; empty when nothing was counted.
std::vector<uint32_t> Minus(const std::vector<uint32_t>& now, const std::vector<uint32_t>& before,
                            size_t begin, size_t count) {
  if (now.empty()) return {};
  std::vector<uint32_t> out(count);
  bool any = false;
  for (size_t n = 0; n < count; ++n) {
    out[n] = now[begin + n] - (before.empty() ? 0 : before[begin + n]);
    any |= out[n] != 0;
  }
  if (!any) out.clear();
  return out;
}

}  // namespace

TelemetryReport ReportBuilder::Build(const NeuronCounters& now, int64_t interval_us) const {
  TelemetryReport report{.instance_id = instance_id_,
                         .model_digest = model_digest_,
                         .sequence = next_sequence_,
                         .interval_us = interval_us,
                         .epoch = now.epoch,
                         .epoch_changes = now.epoch_changes - last_.epoch_changes,
                         .steps = now.steps - last_.steps,
                         .decode_steps = now.decode_steps - last_.decode_steps,
                         .decode_rows = now.decode_rows - last_.decode_rows};
  if (now.layers.empty()) return report;
  const size_t neurons = now.fired.size() / now.layers.size();
  report.num_neurons = static_cast<int64_t>(neurons);
  if (report.steps == 0) return report;
  report.layers.resize(now.layers.size());
  for (size_t l = 0; l < now.layers.size(); ++l) {
    LayerTelemetry& layer = report.layers[l];
    layer.counts = Minus(now.layers[l], last_.layers.empty() ? LayerCounters() : last_.layers[l]);
    layer.predicted = Minus(now.predicted, last_.predicted, l * neurons, neurons);
    layer.fired = Minus(now.fired, last_.fired, l * neurons, neurons);
  }
  return report;
}

void ReportBuilder::Sent(const NeuronCounters& now) {
  ++next_sequence_;
  last_ = now;
}

}  // namespace isotherm
