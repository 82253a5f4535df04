// The control operations of PlanPublisher: queueing, idempotence, preconditions.
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "placement_service/plan/plan_publisher.h"

namespace isotherm {
namespace {

constexpr size_t kMaxQueuedControls = 64;
constexpr size_t kMaxRequestIdBytes = 128;

absl::Status Invalid(absl::string_view field, absl::string_view what) {
  return WithErrorReason(absl::InvalidArgumentError(absl::StrCat(field, " ", what)),
                         {.reason = "INVALID_VALUE", .field = std::string(field)});
}

// The status that FailPending wrote down.
absl::Status FailureOf(const PlanRecord& record) {
  const std::pair<std::string, std::string> parts =
      absl::StrSplit(record.message, absl::MaxSplits(": ", 1));
  for (int code = 1; code <= 16; ++code) {
    const auto status_code = static_cast<absl::StatusCode>(code);
    if (absl::StatusCodeToString(status_code) == parts.first) {
      return absl::Status(status_code, parts.second);
    }
  }
  return absl::FailedPreconditionError(record.message);
}

}  // namespace

absl::Status PlanPublisher::StoppingStatus() {
  return WithErrorReason(absl::UnavailableError("the placement_service is stopping; ask again"),
                         {.reason = "DRAINING", .retry_after = std::chrono::seconds(1)});
}

void PlanPublisher::Rollback(RollbackParams params, ControlDone done) {
  Enqueue({.request_id = std::move(params.request_id),
           .fingerprint = absl::StrCat("rollback ", params.to_epoch, " if ", params.if_etag),
           .if_etag = params.if_etag,
           .rollback_to = params.to_epoch,
           .done = std::move(done)});
}

void PlanPublisher::SetBudget(BudgetParams params, ControlDone done) {
  Enqueue({.request_id = std::move(params.request_id),
           .fingerprint = absl::StrCat("budget ", params.bytes, " if ", params.if_etag),
           .if_etag = params.if_etag,
           .bytes = params.bytes,
           .done = std::move(done)});
}

void PlanPublisher::Enqueue(Control control) {
  absl::Status status;
  if (control.request_id.size() > kMaxRequestIdBytes) {
    status = Invalid("request_id", absl::StrCat("has ", control.request_id.size(),
                                                " bytes; at most ", kMaxRequestIdBytes));
  } else if (control.rollback_to.has_value() && *control.rollback_to < 1) {
    status = Invalid("to_epoch", absl::StrCat("is ", *control.rollback_to,
                                              "; History lists the epochs there are, from 1"));
  } else if (control.bytes < 0) {
    status = Invalid("bytes", absl::StrCat("is ", control.bytes, "; 0 or more"));
  } else {
    absl::MutexLock lock(&mu_);
    if (stopped_) {
      status = StoppingStatus();
    } else if (controls_.size() >= kMaxQueuedControls) {
      status = WithErrorReason(
          absl::ResourceExhaustedError(
              absl::StrCat(controls_.size(), " control operations wait already; try again later")),
          {.reason = "QUEUE_FULL", .retry_after = std::chrono::seconds(1)});
    } else {
      controls_.push_back(std::move(control));
      return;
    }
  }
  control.done(status);
}

void PlanPublisher::Stop() {
  std::deque<Control> controls;
  {
    absl::MutexLock lock(&mu_);
    stopped_ = true;
    controls.swap(controls_);
  }
  for (WorkerPort* port : ports_) port->Cancel();
  for (const Control& control : controls) control.done(StoppingStatus());
}

void PlanPublisher::RunControls() {
  while (true) {
    Control control;
    {
      absl::MutexLock lock(&mu_);
      if (controls_.empty()) break;
      control = std::move(controls_.front());
      controls_.pop_front();
    }
    RunControl(std::move(control));
  }
}

void PlanPublisher::RunControl(Control control) {
  if (!control.request_id.empty() && AnswerRepeated(control)) return;
  absl::StatusOr<PlanRecord> record = PlanFor(control);
  absl::Status status = record.status();
  if (status.ok()) {
    std::optional<ControlRequest> request;
    if (!control.request_id.empty()) {
      request =
          ControlRequest{.request_id = control.request_id, .fingerprint = control.fingerprint};
    }
    status = Begin(*std::move(record), request);
  }
  if (!status.ok()) return control.done(status);
  waiters_.push_back(std::move(control.done));
}

// True when the id was seen before and `control` is answered, or waits for its first use's answer.
bool PlanPublisher::AnswerRepeated(Control& control) {
  const absl::StatusOr<std::optional<ControlRequest>> known =
      store_.FindRequest(control.request_id);
  if (!known.ok()) {
    control.done(known.status());
    return true;
  }
  if (!known->has_value()) return false;
  if ((*known)->fingerprint != control.fingerprint) {
    control.done(Invalid("request_id", "was used for another operation; take a new one"));
    return true;
  }
  if (pending_.has_value() && pending_->plan.epoch == (*known)->epoch) {
    waiters_.push_back(std::move(control.done));
    return true;
  }
  const absl::StatusOr<PlanRecord> record = store_.Get((*known)->epoch, /*bitmaps=*/false);
  if (record.ok() && record->state == PlanState::kFailed) {
    control.done(FailureOf(*record));
  } else if (record.ok() && record->state == PlanState::kPreparing) {
    control.done(absl::FailedPreconditionError(round_blocked_));  // taken over by another service
  } else {
    control.done(record);
  }
  return true;
}

absl::StatusOr<PlanRecord> PlanPublisher::PlanFor(const Control& control) {
  if (fenced_) return absl::FailedPreconditionError(round_blocked_);
  if (!facts_.has_value()) {
    return WithErrorReason(
        absl::UnavailableError(absl::StrCat(round_blocked_, "; ask again when it is ready")),
        {.reason = "NO_WORKER", .retry_after = std::chrono::seconds(1)});
  }
  const PlanRecord* live = UsableLive();
  const std::string etag = live != nullptr ? live->plan.etag : BuiltIn().plan.etag;
  if (!control.if_etag.empty() && control.if_etag != etag) {
    return WithErrorReason(absl::FailedPreconditionError(
                               absl::StrCat("if_etag is ", control.if_etag, ", the live plan has ",
                                            etag, "; look at it again and decide anew")),
                           {.reason = "ETAG_MISMATCH"});
  }
  if (pending_.has_value()) {
    return WithErrorReason(
        absl::FailedPreconditionError(absl::StrCat("epoch ", pending_->plan.epoch,
                                                   " is being prepared; wait until it is live")),
        {.reason = "RECOMPUTE_RUNNING", .retry_after = std::chrono::seconds(1)});
  }
  if (!control.rollback_to.has_value()) return Solve(control.bytes, PlacementCause::kBudget);
  ISOTHERM_ASSIGN_OR_RETURN(PlanRecord record, store_.Get(*control.rollback_to, /*bitmaps=*/true));
  if (record.state != PlanState::kLive && record.state != PlanState::kRetired) {
    return absl::FailedPreconditionError(
        absl::StrCat("epoch ", *control.rollback_to, " was never live; choose one that was"));
  }
  if (record.plan.model_digest != facts_->model_digest) {
    return absl::FailedPreconditionError(absl::StrCat(
        "epoch ", *control.rollback_to, " was for another model; choose one of this model"));
  }
  if (record.plan.used_bytes > facts_->capacity_bytes) {
    return absl::FailedPreconditionError(absl::StrCat(
        "epoch ", *control.rollback_to, " needs ", record.plan.used_bytes,
        " bytes, the gpu_worker has ", facts_->capacity_bytes, "; choose a smaller one"));
  }
  record.plan.from_epoch = *control.rollback_to;
  record.plan.cause = PlacementCause::kRollback;
  return record;
}

}  // namespace isotherm
