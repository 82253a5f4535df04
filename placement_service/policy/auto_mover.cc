#include "placement_service/policy/auto_mover.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace isotherm {

AutoMover::AutoMover(const AutoMoverOptions& options, TrafficModel& traffic, const Clock& clock)
    : options_(options), traffic_(traffic), clock_(clock) {}

// The workers serve another model: tokens are counted from 0 again.
void AutoMover::StartOver() {
  hints_ = SolveHints();
  reversals_ = ReversalWatch();
  traffic_.SetMemory(1);
  last_tokens_ = 0;
  lifted_until_ = -1;
}

void AutoMover::NoteDrift(double total_tokens) {
  const TrafficModel::Drift drift = traffic_.TakeDrift();
  if (!drift.alarm) return;
  lifted_until_ = total_tokens + options_.drift_tokens;
  alarms_.push_back(absl::StrFormat(
      "drift: %.1f %% of the activations are hot, it was %.1f %%; what was learnt counts little "
      "now and neurons move faster",
      100 * drift.recent, 100 * drift.usual));
}

void AutoMover::NoteStale(bool stale) {
  if (stale == stale_) return;
  stale_ = stale;
  alarms_.push_back(stale ? "telemetry is stale: neurons stay where they are until reports come"
                          : "telemetry comes again");
}

void AutoMover::Accrue(const Situation& situation) {
  const Clock::TimePoint now = clock_.Now();
  const double seconds =
      last_accrual_.has_value() ? std::chrono::duration<double>(now - *last_accrual_).count() : 0;
  last_accrual_ = now;
  const double share = lifted() && options_.moves_per_second > 0 ? options_.drift_moves_per_second
                                                                 : options_.moves_per_second;
  const double rate = static_cast<double>(situation.budget_bytes) * share;
  // A small pool moves a neuron at a time.
  double most = rate * options_.saved_seconds;
  for (const LayerGeometry& layer : situation.layers) {
    most = std::max(most, static_cast<double>(layer.bundle_bytes));
  }
  allowance_bytes_ = std::min(most, allowance_bytes_ + rate * std::max(0.0, seconds));
}

int64_t AutoMover::MostIn(const Situation& situation) const {
  if (learning_ && options_.moves_per_second > 0) return situation.budget_bytes;
  const auto allowed = static_cast<int64_t>(allowance_bytes_);
  return lifted() ? allowed : std::min(situation.spare_bytes, allowed);
}

std::optional<MoveDecision> AutoMover::Consider(const Situation& situation) {
  const TrafficModel::Freshness fresh = traffic_.freshness();
  if (fresh.total_tokens < last_tokens_) StartOver();
  NoteDrift(fresh.total_tokens);
  Accrue(situation);
  if (!fresh.age.has_value()) return std::nullopt;
  NoteStale(*fresh.age > options_.stale_after);
  if (stale_) {
    status_ = "frozen: telemetry is stale";
    return std::nullopt;
  }
  const Clock::TimePoint now = clock_.Now();
  const double wait = fresh.learning ? (options_.learn_growth - 1) * last_tokens_ : 0;
  if (fresh.total_tokens - last_tokens_ < std::max(options_.min_tokens, wait) ||
      (last_look_.has_value() && now - *last_look_ < options_.min_interval)) {
    return std::nullopt;
  }
  last_look_ = now;
  last_tokens_ = fresh.total_tokens;
  learning_ = fresh.learning;
  traffic_.SetMemory(reversals_.Memory(last_tokens_, traffic_.half_life_tokens()));
  const TrafficEstimate estimate = traffic_.Estimate();
  const absl::StatusOr<MoveDecision> decision = PlanMoves({.traffic = &estimate,
                                                           .layers = situation.layers,
                                                           .budget_bytes = situation.budget_bytes,
                                                           .live = situation.live->layers,
                                                           .max_in_bytes = MostIn(situation),
                                                           .use_times = situation.use_times},
                                                          options_.policy, &hints_);
  if (!decision.ok()) {
    status_ = absl::StrCat("the solver refused: ", decision.status().message());
    return std::nullopt;
  }
  status_ = learning_ ? absl::StrCat("learning the traffic: ", decision->reason) : decision->reason;
  if (!decision->move) return std::nullopt;
  return *decision;
}

void AutoMover::Moved(const MoveDecision& decision, const std::vector<LayerPlacement>& before) {
  // What was learnt from few tokens goes back as more come: nothing swings.
  if (learning_) return;
  allowance_bytes_ -= static_cast<double>(decision.in_bytes);
  reversals_.Moved(before, decision.plan.layers, last_tokens_, traffic_.half_life_tokens());
}

std::vector<std::string> AutoMover::TakeAlarms() { return std::exchange(alarms_, {}); }

}  // namespace isotherm
