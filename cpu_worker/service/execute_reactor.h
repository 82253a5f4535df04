#pragma once

#include <deque>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "cpu_worker/engine/cpu_worker.h"
#include "isotherm/v1/worker.grpc.pb.h"

namespace isotherm::cpu {

// One Execute stream of the gateway: a hello, again at every change, and a result for each step
// that the gpu side ended. Requests only announce steps; the work itself comes through the slots. A
// reader that falls kMaxQueued messages behind is cut. Deletes itself when done.
class ExecuteReactor final
    : public grpc::ServerBidiReactor<v1::ExecuteRequest, v1::ExecuteResponse>,
      private WorkerListener {
 public:
  explicit ExecuteReactor(CpuWorker& worker);
  static constexpr size_t kMaxQueued = 4096;

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  void OnStepFinished(const StepResult& result) override;
  void OnStateChanged() override;

  absl::Status Handle(const v1::ExecuteRequest& request);
  void Send(v1::ExecuteResponse response);
  void FinishOnce(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);

  CpuWorker& worker_;
  v1::ExecuteRequest request_;
  absl::Mutex mu_;
  std::deque<v1::ExecuteResponse> queue_ ABSL_GUARDED_BY(mu_);  // the first is being written
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace isotherm::cpu
