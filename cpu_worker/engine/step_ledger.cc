#include "cpu_worker/engine/step_ledger.h"

#include <limits>

namespace isotherm::cpu {

void StepLedger::Announce(const StepRequest& request) {
  int64_t last_step;
  if (__builtin_add_overflow(request.step_id, int64_t{request.grant}, &last_step)) {
    last_step = std::numeric_limits<int64_t>::max();
  }
  absl::MutexLock lock(&mu_);
  announced_ = {request.epoch, last_step, clock_.Now()};
}

void StepLedger::AbortAnnounced() {
  absl::MutexLock lock(&mu_);
  announced_.reset();
}

void StepLedger::AddLayer(const Key& key, uint64_t work_hash, int64_t neurons) {
  absl::MutexLock lock(&mu_);
  if (!running_.has_value() || running_->key != key) running_ = Running{.key = key};
  running_->work_hash += work_hash;
  running_->neurons += neurons;
  running_->seen = clock_.Now();
}

StepResult StepLedger::EndStep(const Key& key) {
  StepResult result;
  result.step_id = key.step_id;
  result.epoch = key.epoch;
  result.attempt = key.attempt;
  absl::MutexLock lock(&mu_);
  if (running_.has_value() && running_->key == key) {
    result.work_hash = running_->work_hash;
    result.active_neurons = running_->neurons;
  }
  running_.reset();
  ++steps_ended_;
  if (announced_.has_value()) {
    announced_->seen = clock_.Now();
    if (key.step_id >= announced_->last_step) announced_.reset();
  }
  return result;
}

void StepLedger::DropRunning() {
  absl::MutexLock lock(&mu_);
  running_.reset();
}

bool StepLedger::Uses(int64_t epoch) const {
  const Clock::TimePoint now = clock_.Now();
  absl::MutexLock lock(&mu_);
  return (running_.has_value() && running_->key.epoch == epoch && now - running_->seen < kIdle) ||
         (announced_.has_value() && announced_->epoch == epoch && now - announced_->seen < kIdle);
}

bool StepLedger::InStep() const {
  const Clock::TimePoint now = clock_.Now();
  absl::MutexLock lock(&mu_);
  return running_.has_value() && now - running_->seen < kIdle;
}

int64_t StepLedger::steps_ended() const {
  absl::MutexLock lock(&mu_);
  return steps_ended_;
}

}  // namespace isotherm::cpu
