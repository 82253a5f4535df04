#include "placement_service/service/watch_reactor.h"

#include "common/rpc/status.h"
#include "placement_service/service/plan_convert.h"

namespace isotherm {

WatchReactor::WatchReactor(PlanFeed& feed) : feed_(feed) {
  // Nothing is delivered before Next() found nothing, so this object is whole by then.
  subscription_ = feed_.Subscribe([this](const PlanEvent& event) { Send(event); });
  Next();
}

void WatchReactor::Next() {
  if (const std::optional<PlanEvent> event = subscription_->Take(); event.has_value()) {
    Send(*event);
  } else if (subscription_->overflowed()) {
    End(rpc::ToGrpcStatus(absl::ResourceExhaustedError("fell behind; watch again")));
  }
}

void WatchReactor::Send(const PlanEvent& event) {
  absl::MutexLock lock(&mu_);
  if (ended_) return;
  response_ = ToProto(event);
  StartWrite(&response_);
}

void WatchReactor::End(const grpc::Status& status) {
  absl::MutexLock lock(&mu_);
  if (ended_) return;
  ended_ = true;
  Finish(status);
}

void WatchReactor::OnWriteDone(bool ok) {
  ok ? Next() : End(grpc::Status(grpc::StatusCode::CANCELLED, "the stream broke"));
}

void WatchReactor::OnCancel() { End(grpc::Status::CANCELLED); }

void WatchReactor::OnDone() {
  feed_.Unsubscribe(subscription_);
  delete this;
}

}  // namespace isotherm
