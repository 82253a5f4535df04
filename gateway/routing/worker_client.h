#pragma once

#include "absl/status/status.h"
#include "common/step/step.h"

namespace isotherm {

enum class WorkerKind { kGpu, kCpu };

// Outbound half of one worker's step stream. Called by the scheduler's thread only; neither call
// blocks or fails: what cannot be delivered shows as OnDisconnected.
class WorkerClient {
 public:
  virtual ~WorkerClient() = default;
  // Steps run in the order sent.
  virtual void SendStep(const StepRequest& step) = 0;
  // Ends the grant that runs and whatever is queued; steps sent later run as usual.
  virtual void Abort() = 0;
  // gpu_worker: what KV pages are wanted; of steps sent from now on.
  virtual void SendKvDemand(const KvDemand& demand) = 0;
};

// Inbound half. A stream begins with OnHello, which comes again whenever what it says changes, and
// ends with OnDisconnected; the client reconnects by itself, and then another OnHello follows.
// Calls for one worker never overlap.
class WorkerEvents {
 public:
  virtual ~WorkerEvents() = default;
  virtual void OnHello(WorkerKind kind, WorkerHello hello) = 0;
  virtual void OnResult(WorkerKind kind, StepResult result) = 0;
  virtual void OnDisconnected(WorkerKind kind, absl::Status why) = 0;
};

}  // namespace isotherm
