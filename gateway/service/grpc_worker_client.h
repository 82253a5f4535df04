#pragma once

#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "gateway/routing/worker_client.h"
#include "gateway/scheduling/scheduler_thread.h"

namespace isotherm {

class ExecuteStream;

// One worker's Execute stream, reopened for ever (back-off at most 1 s). SendStep and Abort belong
// to the scheduler's thread and reach the stream whose hello that thread has handled last: a step
// meant for a stream that broke never lands on its successor.
class GrpcWorkerClient : public WorkerClient {
 public:
  GrpcWorkerClient(WorkerKind kind, std::string address);
  ~GrpcWorkerClient() override;

  // Connects in the background; hello, results and disconnections go to `scheduler`.
  void Start(SchedulerThread& scheduler);
  // Closes the stream and waits for it. The scheduler's thread must still run or have ended.
  void Stop();

  void SendStep(const StepRequest& step) override;
  void Abort() override;
  void SendKvDemand(const KvDemand& demand) override;

 private:
  void Loop(SchedulerThread& scheduler);

  const WorkerKind kind_;
  const std::string address_;
  std::shared_ptr<ExecuteStream> current_;  // the scheduler's thread only
  absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::shared_ptr<ExecuteStream> open_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;  // last: it uses the members above
};

}  // namespace isotherm
