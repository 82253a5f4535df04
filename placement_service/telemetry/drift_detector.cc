#include "placement_service/telemetry/drift_detector.h"

#include <algorithm>
#include <cmath>
#include <optional>

namespace isotherm {
namespace {

// The first tokens: a few of a request's prompt alone say little.
constexpr double kMinTokens = 48;
// How much a report's scatter counts for the estimate of it.
constexpr double kVarianceGain = 0.05;
// And how many times what is usual it counts at most.
constexpr double kMaxScatter = 9;

}  // namespace

DriftDetector::DriftDetector(const DriftOptions& options)
    : options_(options), pause_(options.pause_tokens), last_pause_(options.pause_tokens) {}

void DriftDetector::Expect(std::optional<double> share) {
  if (!expected_.has_value() || !share.has_value()) fast_ = slow_ = since_start_ = 0;
  expected_ = share;
}

bool DriftDetector::Add(double tokens, double share) {
  if (tokens <= 0 || !expected_.has_value()) return false;
  const double difference = share - *expected_;
  const double before = fast_;
  fast_ += (difference - fast_) * (1 - std::exp2(-tokens / options_.fast_tokens));
  slow_ += (difference - slow_) * (1 - std::exp2(-tokens / options_.slow_tokens));
  // Of a token, as if tokens were independent; that they are not is in the estimate itself. The
  // first report differs from what was promised, not from another report; and one that is far off
  // is the very thing looked for: it says little of what is usual, and nothing before it was
  // judged.
  const double sigma = std::sqrt(variance_ / (1.44 * options_.fast_tokens));
  if (since_start_ > 0) {
    const double scatter =
        std::min(kMaxScatter * variance_, (difference - before) * (difference - before) * tokens);
    variance_ += (scatter - variance_) * std::max(kVarianceGain, 1 / (samples_ + 1));
    samples_ += 1;
  }
  since_alarm_ += tokens;
  since_start_ += tokens;

  since_halving_ += tokens;
  if (since_alarm_ >= 2 * last_pause_ && since_halving_ >= pause_) {
    pause_ = std::max(options_.pause_tokens, pause_ / 2);
    since_halving_ = 0;
  }
  const double drop = slow_ - fast_;
  const bool rested = alarms_ == 0 || since_alarm_ >= pause_;
  if (!rested || since_start_ < kMinTokens ||
      drop <= std::max(options_.min_drop, options_.sigmas * sigma)) {
    return false;
  }
  // Soon after the end of the pause: something swings.
  if (alarms_ > 0 && since_alarm_ < 2 * last_pause_) {
    pause_ = std::min(options_.max_pause_tokens, 2 * pause_);
  }
  last_pause_ = pause_;
  since_alarm_ = since_halving_ = 0;
  ++alarms_;
  slow_ = fast_;
  return true;
}

}  // namespace isotherm
