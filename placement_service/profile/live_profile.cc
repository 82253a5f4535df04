#include "placement_service/profile/live_profile.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace isotherm {
namespace {

// Counts are divided again before a float would run out of range.
constexpr double kMaxScale = 1e12;

void AddScaled(const std::vector<uint32_t>& counts, double scale, std::vector<float>& sums) {
  for (size_t n = 0; n < counts.size(); ++n) {
    if (counts[n] != 0) sums[n] += static_cast<float>(counts[n] * scale);
  }
}

std::vector<float> Shares(const std::vector<float>& sums, double tokens) {
  std::vector<float> out(sums.size(), 0);
  if (tokens <= 0) return out;
  const auto factor = static_cast<float>(1 / tokens);
  // A worker's counters are not read at one instant, so a share may come out a little above 1.
  for (size_t n = 0; n < sums.size(); ++n) out[n] = std::min(1.0f, sums[n] * factor);
  return out;
}

std::vector<float> Sums(const std::vector<float>& shares, double tokens) {
  std::vector<float> out(shares.size());
  for (size_t n = 0; n < shares.size(); ++n) out[n] = static_cast<float>(shares[n] * tokens);
  return out;
}

}  // namespace

LiveProfile::LiveProfile(int64_t num_layers, int64_t num_neurons, const LiveProfileOptions& options)
    : num_neurons_(num_neurons), options_(options), layers_(static_cast<size_t>(num_layers)) {
  for (Counts& counts : layers_) {
    counts.predicted.assign(static_cast<size_t>(num_neurons), 0);
    counts.fired.assign(static_cast<size_t>(num_neurons), 0);
  }
}

void LiveProfile::Start(std::string name, std::span<const std::vector<float>> predicted,
                        std::span<const std::vector<float>> fired, double tokens) {
  name_ = std::move(name);
  for (size_t l = 0; l < layers_.size(); ++l) {
    Layer layer{.predicted = std::vector<float>(static_cast<size_t>(num_neurons_), 0)};
    if (!predicted.empty()) {
      layer.tokens = layer.fired_tokens = tokens;
      layer.predicted = predicted[l];
    }
    layer.fired = predicted.empty() || fired.empty() ? layer.predicted : fired[l];
    Restore(l, layer);
  }
}

void LiveProfile::Restore(size_t layer, const Layer& values) {
  layers_[layer] = {.scale = 1,
                    .tokens = values.tokens,
                    .fired_tokens = values.fired_tokens,
                    .predicted = Sums(values.predicted, values.tokens),
                    .fired = Sums(values.fired, values.fired_tokens)};
}

void LiveProfile::Rescale(Counts& counts, double factor) {
  for (float& value : counts.predicted) value *= static_cast<float>(factor);
  for (float& value : counts.fired) value *= static_cast<float>(factor);
  counts.tokens *= factor;
  counts.fired_tokens *= factor;
}

void LiveProfile::Add(const TelemetryReport& report, bool from_gpu_worker) {
  const double half_life = options_.half_life_tokens * memory_;
  for (size_t l = 0; l < report.layers.size() && l < layers_.size(); ++l) {
    const LayerTelemetry& layer = report.layers[l];
    Counts& counts = layers_[l];
    const auto tokens = static_cast<double>(layer.counts.tokens);
    const auto exact = static_cast<double>(layer.counts.exact_tokens);
    const double rows = tokens + exact;
    // The report's own tokens came one after the other, too: an hour's are worth less than their
    // number.
    const double worth = rows > 0 ? half_life / (rows * std::log(2.0)) *
                                        -std::expm1(-std::log(2.0) * rows / half_life)
                                  : 1;
    // The cpu_worker saw some of the same rows: they must not count twice.
    if (from_gpu_worker) {
      const double scale = counts.scale * std::exp2(rows / half_life);
      if (scale > kMaxScale) {
        Rescale(counts, 1 / scale);
        counts.scale = 1;
      } else {
        counts.scale = scale;
      }
      counts.tokens += tokens * worth * counts.scale;
      counts.fired_tokens += rows * worth * counts.scale;
      AddScaled(layer.predicted, worth * counts.scale, counts.predicted);
    }
    AddScaled(layer.fired, worth * counts.scale, counts.fired);
  }
}

void LiveProfile::Forget(double keep) {
  for (Counts& counts : layers_) Rescale(counts, keep);
}

double LiveProfile::tokens() const {
  double least = layers_.empty() ? 0 : layers_[0].tokens / layers_[0].scale;
  for (const Counts& counts : layers_) least = std::min(least, counts.tokens / counts.scale);
  return least;
}

LiveProfile::Layer LiveProfile::Get(size_t layer) const {
  const Counts& counts = layers_[layer];
  return {.tokens = counts.tokens / counts.scale,
          .fired_tokens = counts.fired_tokens / counts.scale,
          .predicted = Shares(counts.predicted, counts.tokens),
          .fired = Shares(counts.fired, counts.fired_tokens)};
}

}  // namespace isotherm
