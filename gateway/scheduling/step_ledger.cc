#include "gateway/scheduling/step_ledger.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"

namespace isotherm {

void StepLedger::Add(SentStep step) {
  ISOTHERM_CHECK(step.step_id == next_step_id_);
  next_step_id_ = step.step_id + step.grant + 1;
  in_flight_.push_back(std::move(step));
}

StepLedger::ArrivalOutcome StepLedger::OnGpuResult(StepResult result, Clock::TimePoint now) {
  ArrivalOutcome outcome;
  const auto owner = std::find_if(in_flight_.begin(), in_flight_.end(), [&](const SentStep& sent) {
    return result.step_id >= sent.step_id && result.step_id <= sent.step_id + sent.grant;
  });
  if (owner == in_flight_.end() || result.step_id < owner->step_id + owner->arrived) {
    ++num_ignored_;
    return outcome;
  }
  outcome.step = *owner;
  const bool skipped_a_step = result.step_id != owner->step_id + owner->arrived;
  // A newer request may cut a grant short, but never a request's first step.
  const bool skipped_a_request =
      std::any_of(in_flight_.begin(), owner, [](const SentStep& s) { return s.arrived == 0; });
  if (skipped_a_step || skipped_a_request) {
    outcome.kind = Arrival::kGap;
    return outcome;
  }
  outcome.kind = Arrival::kAccepted;
  while (in_flight_.front().step_id != owner->step_id) {
    outcome.ended.push_back(std::move(in_flight_.front()));
    in_flight_.pop_front();
  }
  SentStep& sent = in_flight_.front();
  ++sent.arrived;
  arrived_.push_back(
      {.result = std::move(result), .rows = sent.rows, .to_cpu = sent.to_cpu, .arrived_at = now});
  if (arrived_.back().result.grant_ended || sent.steps_left() == 0) {
    outcome.ended.push_back(std::move(sent));
    in_flight_.pop_front();
  }
  return outcome;
}

void StepLedger::OnCpuResult(int64_t step_id, uint64_t work_hash) {
  // Bounded by what is outstanding: ids are reserved, and doubled answers do not add up.
  if (step_id < oldest_live_id_ || step_id >= next_step_id_ ||
      !cpu_hashes_.emplace(step_id, work_hash).second) {
    ++num_ignored_;
  }
}

bool StepLedger::IsOutstanding(int64_t step_id) const {
  const auto arrived = [&](const ArrivedStep& s) { return s.result.step_id == step_id; };
  const auto sent = [&](const SentStep& s) {
    return step_id >= s.step_id + s.arrived && step_id <= s.step_id + s.grant;
  };
  return std::any_of(arrived_.begin(), arrived_.end(), arrived) ||
         std::any_of(in_flight_.begin(), in_flight_.end(), sent);
}

void StepLedger::OnCpuLost() {
  for (SentStep& step : in_flight_) step.to_cpu = false;
  for (ArrivedStep& step : arrived_) step.to_cpu = false;
}

Completeness StepLedger::CheckOldest(bool cpu_attached, Clock::TimePoint now,
                                     std::chrono::nanoseconds verify_timeout) const {
  if (arrived_.empty()) return Completeness::kNothing;
  const ArrivedStep& step = arrived_.front();
  if (step.rows.empty()) return Completeness::kComplete;  // no row, no neuron, no token
  const bool alone = step.result.work_hash == step.result.owed_hash;
  if (step.result.cpu_recomputed) {
    return alone ? Completeness::kComplete : Completeness::kMismatch;
  }
  if (const auto cpu = cpu_hashes_.find(step.result.step_id); cpu != cpu_hashes_.end()) {
    const uint64_t total = step.result.work_hash + cpu->second;
    return total == step.result.owed_hash ? Completeness::kComplete : Completeness::kMismatch;
  }
  if (step.to_cpu && cpu_attached && now < step.arrived_at + verify_timeout) {
    return Completeness::kWaiting;
  }
  return alone ? Completeness::kComplete : Completeness::kCpuHashLost;
}

ArrivedStep StepLedger::PopOldest() {
  ArrivedStep step = std::move(arrived_.front());
  arrived_.pop_front();
  oldest_live_id_ = step.result.step_id + 1;
  cpu_hashes_.erase(cpu_hashes_.begin(), cpu_hashes_.lower_bound(oldest_live_id_));
  return step;
}

void StepLedger::Clear() {
  in_flight_.clear();
  arrived_.clear();
  cpu_hashes_.clear();
  oldest_live_id_ = next_step_id_;
}

}  // namespace isotherm
