#include "placement_service/plan/gain_recorder.h"

namespace isotherm {
namespace {

// Tokens of which the hit share is good to about a percent.
constexpr double kMinTokens = 400;

}  // namespace

void GainRecorder::BeforeFlip() { before_ = traffic_.Measured(); }

std::optional<GainRecorder::Result> GainRecorder::Take(int64_t live_epoch) {
  if (live_epoch == taken_epoch_) return std::nullopt;
  const Measurement now = traffic_.Measured();
  if (now.epoch != live_epoch || now.tokens < kMinTokens) return std::nullopt;
  taken_epoch_ = live_epoch;
  Result result{.hit_share = now.hit_share};
  if (before_.epoch != live_epoch && before_.tokens >= kMinTokens && before_.step_ns > 0 &&
      now.step_ns > 0) {
    result.gain = 1 - now.step_ns / before_.step_ns;
  }
  return result;
}

}  // namespace isotherm
