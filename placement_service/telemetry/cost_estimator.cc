#include "placement_service/telemetry/cost_estimator.h"

#include <algorithm>
#include <cmath>

namespace isotherm {
namespace {

// Steps after which a timing is worth half.
constexpr double kHalfLifeSteps = 2'000;
// Layer timings below which nothing is said: some dozen decode steps of a small model.
constexpr double kMinTimings = 200;
// A wait shorter than this is the two sides ending together, and says nothing of the hand-off.
constexpr double kMinWaitNs = 500;

double Keep(uint64_t steps) { return std::exp2(-static_cast<double>(steps) / kHalfLifeSteps); }

}  // namespace

void CostEstimator::Line::Age(double keep) {
  for (double* sum : {&w_, &x_, &y_, &xx_, &xy_}) *sum *= keep;
}

void CostEstimator::Line::Add(double weight, double x, double y) {
  w_ += weight;
  x_ += weight * x;
  y_ += weight * y;
  xx_ += weight * x * x;
  xy_ += weight * x * y;
}

double CostEstimator::Line::per_byte() const {
  if (w_ <= 0 || x_ <= 0) return 0;
  const double variance = xx_ / w_ - (x_ / w_) * (x_ / w_);
  const double covariance = xy_ / w_ - (x_ / w_) * (y_ / w_);
  const double mean = x_ / w_;
  // All layers alike, or the slope is noise: everything is charged to the bytes.
  if (variance < 1e-4 * mean * mean || covariance <= 0) return y_ / x_;
  const double slope = covariance / variance;
  // A line below 0 at no bytes is the one through 0.
  return y_ / w_ - slope * mean >= 0 ? slope : xy_ / xx_;
}

double CostEstimator::Line::fixed() const {
  return w_ > 0 ? std::max(0.0, y_ / w_ - per_byte() * x_ / w_) : 0;
}

void CostEstimator::AddGpuReport(const TelemetryReport& report) {
  const double keep = Keep(report.decode_steps);
  hot_.Age(keep);
  for (double* sum : {&handoff_ns_, &handoff_weight_, &merge_ns_, &merge_weight_, &gpu_cold_bytes_,
                      &decode_rows_, &decode_steps_, &step_ns_, &step_weight_}) {
    *sum *= keep;
  }
  decode_rows_ += static_cast<double>(report.decode_rows);
  decode_steps_ += static_cast<double>(report.decode_steps);
  double step_ns = 0;
  double steps = 0;
  for (const LayerTelemetry& layer : report.layers) {
    const LayerCounters& counts = layer.counts;
    gpu_cold_bytes_ += static_cast<double>(counts.timed_cold_bytes);
    if (counts.timed_steps == 0) continue;
    const auto weight = static_cast<double>(counts.timed_steps);
    const auto mean = [&](uint64_t sum) { return static_cast<double>(sum) / weight; };
    const double gpu = mean(counts.gpu_ns), cpu = mean(counts.cpu_ns), wait = mean(counts.wait_ns);
    hot_.Add(weight, mean(counts.hot_bytes), gpu);
    merge_ns_ += static_cast<double>(counts.merge_ns);
    merge_weight_ += weight;
    if (cpu > 0 && wait > kMinWaitNs) {
      handoff_ns_ += weight * std::max(0.0, gpu + wait - cpu);
      handoff_weight_ += weight;
    }
    step_ns += gpu + wait + mean(counts.merge_ns);
    steps = std::max(steps, weight);
  }
  step_ns_ += step_ns * steps;
  step_weight_ += steps;
}

void CostEstimator::AddCpuReport(const TelemetryReport& report) {
  const double keep = Keep(report.steps);
  cold_.Age(keep);
  cpu_cold_bytes_ *= keep;
  for (const LayerTelemetry& layer : report.layers) {
    const LayerCounters& counts = layer.counts;
    if (counts.timed_steps == 0) continue;
    const auto weight = static_cast<double>(counts.timed_steps);
    cold_.Add(weight, static_cast<double>(counts.timed_cold_bytes) / weight,
              static_cast<double>(counts.cpu_ns) / weight);
    cpu_cold_bytes_ += static_cast<double>(counts.timed_cold_bytes);
  }
}

bool CostEstimator::known() const {
  return hot_.weight() >= kMinTimings && cold_.weight() >= kMinTimings && cold_.per_byte() > 0;
}

SolveBin CostEstimator::costs() const {
  const double all = gpu_cold_bytes_ + cpu_cold_bytes_;
  const double cpu_share = all > 0 ? cpu_cold_bytes_ / all : 1;
  const double handoff = handoff_weight_ > 0 ? handoff_ns_ / handoff_weight_ : 0;
  const double merge = merge_weight_ > 0 ? merge_ns_ / merge_weight_ : 0;
  return {.cold_fixed = cold_.fixed() + handoff + merge,
          .cold_per_byte = std::max(1e-6, cold_.per_byte() * cpu_share),
          .hot_fixed = hot_.fixed(),
          .hot_per_byte = hot_.per_byte()};
}

double CostEstimator::rows_per_step() const {
  return decode_steps_ > 0 ? std::max(1.0, decode_rows_ / decode_steps_) : 1;
}

}  // namespace isotherm
