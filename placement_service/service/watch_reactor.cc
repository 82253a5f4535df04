#include "placement_service/service/watch_reactor.h"

#include <optional>

#include "common/rpc/step_convert.h"

namespace isotherm {

v1::PlanState ToProto(PlanState state) {
  switch (state) {
    case PlanState::kPreparing:
      return v1::PLAN_STATE_PREPARING;
    case PlanState::kLive:
      return v1::PLAN_STATE_LIVE;
    case PlanState::kRetired:
      return v1::PLAN_STATE_RETIRED;
    case PlanState::kFailed:
      return v1::PLAN_STATE_FAILED;
  }
  return v1::PLAN_STATE_UNSPECIFIED;
}

WatchReactor::WatchReactor(PlanFeed& feed) : feed_(feed) {
  subscription_ = feed_.Subscribe([this](PlanEvent event) {
    std::lock_guard lock(mu_);
    if (!ended_) Write(event);
  });
  std::lock_guard lock(mu_);
  WriteNextOrWait();
}

void WatchReactor::Write(const PlanEvent& event) {
  response_.Clear();
  response_.set_sequence(event.sequence);
  *response_.mutable_plan() = rpc::ToProto(event.plan, /*include_bitmaps=*/false);
  response_.set_state(ToProto(event.state));
  response_.set_message(event.message);
  writing_ = true;
  StartWrite(&response_);
}

void WatchReactor::WriteNextOrWait() {
  if (subscription_->overflowed()) {
    End(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the watcher fell behind; watch again"));
    return;
  }
  const std::optional<PlanEvent> event = subscription_->Take();
  if (event.has_value()) Write(*event);
}

void WatchReactor::End(const grpc::Status& status) {
  if (ended_) return;
  ended_ = true;
  Finish(status);
}

void WatchReactor::OnWriteDone(bool ok) {
  std::lock_guard lock(mu_);
  writing_ = false;
  if (!ok) {
    End(grpc::Status::CANCELLED);
  } else if (!ended_) {
    WriteNextOrWait();
  }
}

void WatchReactor::OnCancel() {
  std::lock_guard lock(mu_);
  if (!writing_) End(grpc::Status::CANCELLED);
}

void WatchReactor::OnDone() {
  feed_.Unsubscribe(subscription_);
  delete this;
}

}  // namespace isotherm
