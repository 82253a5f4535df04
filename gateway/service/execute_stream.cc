#include "gateway/service/execute_stream.h"

#include <utility>

namespace isotherm {

void ExecuteStream::Start(v1::WorkerService::Stub& stub) {
  stub.async()->Execute(&context_, this);
  // Writes start outside of reactions; the hold lets them, until reading has ended.
  AddHold();
  StartRead(&response_);
  StartCall();
}

void ExecuteStream::Send(v1::ExecuteRequest request) {
  absl::MutexLock lock(&mu_);
  if (reads_ended_) return;
  queue_.push_back(std::move(request));
  if (!writing_) WriteNext();
}

void ExecuteStream::WriteNext() {
  writing_ = true;
  StartWrite(&queue_.front());
}

void ExecuteStream::OnReadDone(bool ok) {
  if (ok && on_message_(*this, response_)) {
    response_.Clear();
    StartRead(&response_);
    return;
  }
  {
    absl::MutexLock lock(&mu_);
    reads_ended_ = true;
  }
  context_.TryCancel();
  RemoveHold();
}

void ExecuteStream::OnWriteDone(bool ok) {
  absl::MutexLock lock(&mu_);
  queue_.pop_front();
  writing_ = false;
  if (ok && !reads_ended_ && !queue_.empty()) WriteNext();
}

void ExecuteStream::OnDone(const grpc::Status& status) {
  absl::MutexLock lock(&mu_);
  status_ = status;
  done_ = true;
}

grpc::Status ExecuteStream::WaitUntilDone() {
  absl::MutexLock lock(&mu_);
  mu_.Await(absl::Condition(&done_));
  return status_;
}

}  // namespace isotherm
