#pragma once

#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/step/step.h"

namespace isotherm::cpu {

// Called by engine threads; must not block nor call back into WorkerEvents.
class WorkerListener {
 public:
  virtual ~WorkerListener() = default;
  virtual void OnStepFinished(const StepResult& result) = 0;
  // The set of committed epochs or the attachment changed.
  virtual void OnStateChanged() = 0;
};

// Tells the streams of the gateway what the engine did. Thread-safe.
class WorkerEvents {
 public:
  void Add(WorkerListener* listener);
  // After it returns the listener is not called any more.
  void Remove(WorkerListener* listener);

  void StepFinished(const StepResult& result);
  void StateChanged();

 private:
  absl::Mutex mu_;
  std::vector<WorkerListener*> listeners_ ABSL_GUARDED_BY(mu_);
};

}  // namespace isotherm::cpu
