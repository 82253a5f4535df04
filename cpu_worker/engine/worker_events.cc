#include "cpu_worker/engine/worker_events.h"

#include <algorithm>

namespace isotherm::cpu {

void WorkerEvents::Add(WorkerListener* listener) {
  absl::MutexLock lock(&mu_);
  listeners_.push_back(listener);
}

void WorkerEvents::Remove(WorkerListener* listener) {
  absl::MutexLock lock(&mu_);
  listeners_.erase(std::remove(listeners_.begin(), listeners_.end(), listener), listeners_.end());
}

void WorkerEvents::StepFinished(const StepResult& result) {
  absl::MutexLock lock(&mu_);
  for (WorkerListener* listener : listeners_) listener->OnStepFinished(result);
}

void WorkerEvents::StateChanged() {
  absl::MutexLock lock(&mu_);
  for (WorkerListener* listener : listeners_) listener->OnStateChanged();
}

}  // namespace isotherm::cpu
