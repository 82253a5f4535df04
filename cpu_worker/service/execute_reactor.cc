#include "cpu_worker/service/execute_reactor.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/rpc/status.h"
#include "common/rpc/step_convert.h"

namespace isotherm::cpu {

ExecuteReactor::ExecuteReactor(CpuWorker& worker) : worker_(worker) {
  worker_.events().Add(this);
  if (const auto parts = worker_.parts(); !parts.ok()) {
    FinishOnce(parts.status());
    return;
  }
  OnStateChanged();
  StartRead(&request_);
}

void ExecuteReactor::FinishOnce(const absl::Status& status) {
  {
    absl::MutexLock lock(&mu_);
    if (std::exchange(finished_, true)) return;
  }
  Finish(rpc::ToGrpcStatus(status));
}

void ExecuteReactor::OnReadDone(bool ok) {
  if (!ok) return FinishOnce(absl::OkStatus());
  if (absl::Status status = Handle(request_); !status.ok()) return FinishOnce(status);
  StartRead(&request_);
}

absl::Status ExecuteReactor::Handle(const v1::ExecuteRequest& request) {
  switch (request.message_case()) {
    case v1::ExecuteRequest::kAbort:
      worker_.ledger().AbortAnnounced();
      return absl::OkStatus();
    case v1::ExecuteRequest::kStep: {
      ISOTHERM_ASSIGN_OR_RETURN(const StepRequest step, rpc::FromProto(request.step()));
      ISOTHERM_ASSIGN_OR_RETURN(const CpuWorker::Parts* parts, worker_.parts());
      if (parts->epochs->Find(step.epoch) != nullptr) {
        worker_.ledger().Announce(step);
        return absl::OkStatus();
      }
      StepResult refused;
      refused.step_id = step.step_id;
      refused.epoch = step.epoch;
      refused.error_code = static_cast<int32_t>(absl::StatusCode::kAborted);
      refused.error_message =
          absl::StrCat("epoch ", step.epoch, " is not committed on the cpu_worker");
      OnStepFinished(refused);
      return absl::OkStatus();
    }
    default:
      return absl::InvalidArgumentError("an ExecuteRequest without step or abort");
  }
}

void ExecuteReactor::OnStepFinished(const StepResult& result) {
  v1::ExecuteResponse response;
  *response.mutable_result() = rpc::ToProto(result);
  Send(std::move(response));
}

void ExecuteReactor::OnStateChanged() {
  v1::ExecuteResponse response;
  *response.mutable_hello() = rpc::ToProto(worker_.Hello());
  Send(std::move(response));
}

void ExecuteReactor::Send(v1::ExecuteResponse response) {
  absl::MutexLock lock(&mu_);
  if (finished_) return;
  if (queue_.size() >= kMaxQueued) {
    finished_ = true;
    Finish(rpc::ToGrpcStatus(absl::ResourceExhaustedError(
        absl::StrCat("the reader is ", queue_.size(), " messages behind"))));
    return;
  }
  queue_.push_back(std::move(response));
  // Under the lock, so that no write starts after Finish.
  if (queue_.size() == 1) StartWrite(&queue_.front());
}

void ExecuteReactor::OnWriteDone(bool ok) {
  if (!ok) return FinishOnce(absl::CancelledError("the stream broke"));
  absl::MutexLock lock(&mu_);
  queue_.pop_front();
  if (!finished_ && !queue_.empty()) StartWrite(&queue_.front());
}

void ExecuteReactor::OnCancel() { FinishOnce(absl::CancelledError("the stream was cancelled")); }

void ExecuteReactor::OnDone() {
  worker_.events().Remove(this);
  delete this;
}

}  // namespace isotherm::cpu
