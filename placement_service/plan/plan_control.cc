// The control operations of PlanPublisher: queueing, idempotence, preconditions.

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "common/process/log.h"
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
  Enqueue({.kind = Control::Kind::kRollback,
           .request_id = std::move(params.request_id),
           .fingerprint = absl::StrCat("rollback ", params.to_epoch, " if ", params.if_etag),
           .if_etag = params.if_etag,
           .to_epoch = params.to_epoch,
           .done = std::move(done)});
}

void PlanPublisher::SetBudget(BudgetParams params, ControlDone done) {
  Enqueue({.kind = Control::Kind::kBudget,
           .request_id = std::move(params.request_id),
           .fingerprint = absl::StrCat("budget ", params.bytes, " if ", params.if_etag),
           .if_etag = params.if_etag,
           .bytes = params.bytes,
           .instance_id = std::move(params.instance_id),
           .done = std::move(done)});
}

void PlanPublisher::SetPin(PinParams params, ControlDone done) {
  Enqueue({.kind = Control::Kind::kPin,
           .request_id = std::move(params.request_id),
           .fingerprint = absl::StrCat("pin ", params.pinned, " if ", params.if_etag),
           .if_etag = params.if_etag,
           .pinned = params.pinned,
           .done = std::move(done)});
}

void PlanPublisher::ImportProfile(ImportProfileParams params, ControlDone done) {
  Control control{.kind = Control::Kind::kImportProfile,
                  .request_id = params.request_id,
                  .fingerprint = absl::StrCat("profile ", params.name)};
  control.profile = std::move(params);
  control.done = std::move(done);
  Enqueue(std::move(control));
}

// What is wrong with the arguments alone.
absl::Status PlanPublisher::CheckControl(const Control& control) const {
  if (control.request_id.size() > kMaxRequestIdBytes) {
    return Invalid("request_id", absl::StrCat("has ", control.request_id.size(), " bytes; at most ",
                                              kMaxRequestIdBytes));
  }
  if (control.kind == Control::Kind::kRollback && control.to_epoch < 1) {
    return Invalid("to_epoch", absl::StrCat("is ", control.to_epoch,
                                            "; History lists the epochs there are, from 1"));
  }
  if (control.bytes < 0) return Invalid("bytes", absl::StrCat("is ", control.bytes, "; 0 or more"));
  if (control.budget_bytes.value_or(0) < 0) {
    return Invalid("budget_bytes", absl::StrCat("is ", *control.budget_bytes, "; 0 or more"));
  }
  return absl::OkStatus();
}

absl::Status PlanPublisher::CheckEtag(absl::string_view if_etag, absl::string_view etag) const {
  if (if_etag.empty() || if_etag == etag) return absl::OkStatus();
  return WithErrorReason(
      absl::AbortedError(absl::StrCat("if_etag is ", if_etag, ", the live plan has ", etag,
                                      "; look at it again and decide anew")),
      {.reason = "ETAG_MISMATCH"});
}

void PlanPublisher::Enqueue(Control control) {
  absl::Status status = CheckControl(control);
  if (status.ok()) {
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
  for (const Control& control : controls) {
    if (control.done != nullptr) control.done(StoppingStatus());
  }
}

void PlanPublisher::RunControls() {
  std::deque<Control> controls;
  {
    absl::MutexLock lock(&mu_);
    controls.swap(controls_);
  }
  while (!controls.empty()) {
    Control control = std::move(controls.front());
    controls.pop_front();
    const bool waits =
        control.kind == Control::Kind::kRecompute || control.kind == Control::Kind::kImportPlan;
    if (!waits) {
      RunControl(std::move(control));
    } else if (!pending_.has_value() && !goal_.has_value()) {
      RunRecomputation(std::move(control));
    } else {
      // Its turn comes when the plan under way is live; the caller has its answer already.
      absl::MutexLock lock(&mu_);
      if (!stopped_) controls_.push_back(std::move(control));
    }
  }
}

void PlanPublisher::RunControl(Control control) {
  if (!control.request_id.empty() && AnswerRepeated(control)) return;
  if (control.kind == Control::Kind::kPin || control.kind == Control::Kind::kImportProfile) {
    const absl::Status status =
        control.kind == Control::Kind::kPin ? ApplyPin(control) : ApplyProfile(control);
    if (!status.ok()) return control.done(status);
    const PlanRecord* live = UsableLive();
    return control.done(live != nullptr ? *live : BuiltIn());
  }
  absl::StatusOr<PlanRecord> record = PlanFor(control);
  absl::Status status = record.status();
  if (status.ok()) {
    std::optional<ControlRequest> request;
    if (!control.request_id.empty()) {
      request =
          ControlRequest{.request_id = control.request_id, .fingerprint = control.fingerprint};
    }
    status = Begin(*std::move(record), std::move(request));
  }
  if (!status.ok()) return control.done(status);
  if (control.kind == Control::Kind::kBudget) {
    waiters_.push_back([this](const absl::StatusOr<PlanRecord>& plan) {
      if (plan.ok()) feed_->PublishBudget(*plan);
    });
  }
  waiters_.push_back(std::move(control.done));
}

// True when the id was seen before and `control` is answered, or waits for its first use's answer.
bool PlanPublisher::AnswerRepeated(Control& control) {
  if (goal_.has_value() && goal_->request.has_value() &&
      goal_->request->request_id == control.request_id &&
      goal_->request->fingerprint == control.fingerprint) {
    waiters_.push_back(std::move(control.done));
    return true;
  }
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
  if (control.kind == Control::Kind::kPin || control.kind == Control::Kind::kImportProfile) {
    // Done once; what it led to is the live plan as it is.
    const PlanRecord* live = UsableLive();
    control.done(live != nullptr ? *live : BuiltIn());
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

absl::Status PlanPublisher::ApplyPin(const Control& control) {
  if (fenced_) return absl::FailedPreconditionError(round_blocked_);
  const PlanRecord* live = UsableLive();
  ISOTHERM_RETURN_IF_ERROR(
      CheckEtag(control.if_etag, live != nullptr ? live->plan.etag : BuiltIn().plan.etag));
  ISOTHERM_RETURN_IF_ERROR(store_.PutSetting(kPinnedSetting, control.pinned ? "1" : "0"));
  {
    absl::MutexLock lock(&mu_);
    pinned_ = control.pinned;
  }
  const int64_t epoch = live != nullptr ? live->plan.epoch : 0;
  LogInfo("epoch {} is {}", epoch, control.pinned ? "pinned" : "not pinned any more");
  if (control.request_id.empty()) return absl::OkStatus();
  return store_.InsertRequest(
      {.request_id = control.request_id, .fingerprint = control.fingerprint, .epoch = epoch});
}

absl::Status PlanPublisher::ApplyProfile(const Control& control) {
  if (fenced_) return absl::FailedPreconditionError(round_blocked_);
  if (!facts_.has_value()) {
    return WithErrorReason(
        absl::UnavailableError(absl::StrCat(round_blocked_, "; ask again when it is ready")),
        {.reason = "NO_WORKER", .retry_after = std::chrono::seconds(1)});
  }
  const ImportProfileParams& profile = control.profile;
  for (const auto* shares : {&profile.predicted, &profile.fired}) {
    if (shares == &profile.fired && shares->empty()) continue;
    bool fits = static_cast<int64_t>(shares->size()) == facts_->shape.num_layers;
    for (const std::vector<float>& layer : *shares) {
      fits &= static_cast<int64_t>(layer.size()) == facts_->shape.num_neurons;
    }
    if (!fits) {
      return Invalid("layers", absl::StrCat("are not ", facts_->shape.num_layers, " of ",
                                            facts_->shape.num_neurons,
                                            " neurons; give a profile of the model served"));
    }
    for (const std::vector<float>& layer : *shares) {
      for (const float share : layer) {
        if (!(share >= 0 && share <= 1)) {
          return Invalid("layers", absl::StrCat("have the share ", share, "; 0 to 1 are wanted"));
        }
      }
    }
  }
  if (!(profile.tokens >= 0 && profile.tokens <= 1e12)) {
    return Invalid("tokens", absl::StrCat("is ", profile.tokens, "; 0 to 1e12"));
  }
  traffic_.SetPrior(profile.name, profile.predicted, profile.fired, profile.tokens);
  ISOTHERM_RETURN_IF_ERROR(store_.PutProfile(traffic_.Snapshot()));
  LogInfo("learning starts over from the profile {}", profile.name);
  if (control.request_id.empty()) return absl::OkStatus();
  const PlanRecord* live = UsableLive();
  return store_.InsertRequest({.request_id = control.request_id,
                               .fingerprint = control.fingerprint,
                               .epoch = live != nullptr ? live->plan.epoch : 0});
}

absl::StatusOr<PlanRecord> PlanPublisher::PlanFor(const Control& control) {
  if (fenced_) return absl::FailedPreconditionError(round_blocked_);
  if (!facts_.has_value()) {
    return WithErrorReason(
        absl::UnavailableError(absl::StrCat(round_blocked_, "; ask again when it is ready")),
        {.reason = "NO_WORKER", .retry_after = std::chrono::seconds(1)});
  }
  if (!control.instance_id.empty() && control.instance_id != facts_->gpu_instance_id) {
    return absl::NotFoundError(absl::StrCat("instance_id is ", control.instance_id,
                                            ", the gpu_worker is ", facts_->gpu_instance_id));
  }
  const PlanRecord* live = UsableLive();
  ISOTHERM_RETURN_IF_ERROR(
      CheckEtag(control.if_etag, live != nullptr ? live->plan.etag : BuiltIn().plan.etag));
  if (pinned()) {
    return WithErrorReason(absl::FailedPreconditionError("the live plan is pinned; unpin it first"),
                           {.reason = "PINNED"});
  }
  if (pending_.has_value() || goal_.has_value()) {
    return WithErrorReason(
        absl::FailedPreconditionError(
            pending_.has_value()
                ? absl::StrCat("epoch ", pending_->plan.epoch,
                               " is being prepared; wait until it is live")
                : "neurons are on their way to another plan; wait until it is live"),
        {.reason = "RECOMPUTE_RUNNING", .retry_after = std::chrono::seconds(1)});
  }
  if (control.kind == Control::Kind::kBudget) {
    return Solve(control.bytes, PlacementCause::kBudget, live);
  }
  return RollbackPlan(control.to_epoch);
}

absl::StatusOr<PlanRecord> PlanPublisher::RollbackPlan(int64_t to_epoch) {
  ISOTHERM_ASSIGN_OR_RETURN(PlanRecord record, store_.Get(to_epoch, /*bitmaps=*/true));
  if (record.state != PlanState::kLive && record.state != PlanState::kRetired) {
    return absl::FailedPreconditionError(
        absl::StrCat("epoch ", to_epoch, " was never live; choose one that was"));
  }
  if (!record.contents_kept) {
    return absl::FailedPreconditionError(
        absl::StrCat("the hot sets of epoch ", to_epoch,
                     " are no longer kept; choose a newer one, or one that was asked for"));
  }
  if (record.plan.model_digest != facts_->shape.digest) {
    return absl::FailedPreconditionError(
        absl::StrCat("epoch ", to_epoch, " was for another model; choose one of this model"));
  }
  if (record.plan.used_bytes > facts_->capacity_bytes) {
    return absl::FailedPreconditionError(absl::StrCat(
        "epoch ", to_epoch, " needs ", record.plan.used_bytes, " bytes, the gpu_worker has ",
        facts_->capacity_bytes, "; choose a smaller one"));
  }
  record.plan.from_epoch = to_epoch;
  record.plan.cause = PlacementCause::kRollback;
  record.reason = absl::StrCat("rollback to epoch ", to_epoch);
  record.predicted_gain = 0;
  return record;
}

}  // namespace isotherm
