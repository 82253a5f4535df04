// What makes PlanPublisher move neurons: solving, recomputations, the traffic.

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "common/process/log.h"
#include "common/process/service_process.h"
#include "placement_service/plan/plan_codec.h"
#include "placement_service/plan/plan_publisher.h"

namespace isotherm {

std::vector<LayerGeometry> PlanPublisher::Geometry() const {
  return std::vector<LayerGeometry>(static_cast<size_t>(facts_->shape.num_layers),
                                    {facts_->shape.num_neurons, facts_->shape.bundle_bytes});
}

MoveInput PlanPublisher::MoveInputFor(int64_t budget_bytes, const PlanRecord* live,
                                      const TrafficEstimate& estimate) const {
  MoveInput input{.traffic = &estimate, .layers = Geometry(), .budget_bytes = budget_bytes};
  if (live != nullptr) input.live = live->plan.layers;
  input.use_times = options_.objective == PlanObjective::kTime ||
                    (options_.objective == PlanObjective::kAuto && facts_->device != "cpu");
  return input;
}

// The best plan under a budget; close to `live`, if there is one.
absl::StatusOr<PlanRecord> PlanPublisher::Solve(int64_t requested_bytes, PlacementCause cause,
                                                const PlanRecord* live) {
  const int64_t budget = requested_bytes == kAutoBudget
                             ? facts_->capacity_bytes
                             : std::min(requested_bytes, facts_->capacity_bytes);
  const TrafficEstimate estimate = traffic_.Estimate();
  MoveInput input = MoveInputFor(budget, live, estimate);
  input.required = true;
  ISOTHERM_ASSIGN_OR_RETURN(MoveDecision decision, PlanMoves(input, options_.mover.policy));
  PlanRecord record;
  record.plan = std::move(decision.plan);
  record.plan.cause = cause;
  record.reason = std::move(decision.reason);
  record.predicted_gain = live != nullptr ? decision.gain : 0;
  record.requested_bytes = requested_bytes;
  return record;
}

void PlanPublisher::FollowTraffic() {
  for (const std::string& alarm : mover_.TakeAlarms()) {
    LogWarning("{}", alarm);
    feed_->PublishAlarm(alarm);
  }
  const PlanRecord* live = UsableLive();
  const bool all_here = std::all_of(workers_.begin(), workers_.end(),
                                    [](const WorkerView* worker) { return worker->present(); });
  if (!options_.follow || pinned() || live == nullptr || !all_here) return;
  const int64_t spare = SpareBytes();
  const TrafficEstimate none;
  const std::optional<MoveDecision> decision =
      mover_.Consider({.layers = Geometry(),
                       .budget_bytes = std::min(live->plan.budget_bytes, facts_->capacity_bytes),
                       .spare_bytes = spare >= 0 ? spare : std::numeric_limits<int64_t>::max(),
                       .live = &live->plan,
                       .use_times = MoveInputFor(0, nullptr, none).use_times});
  if (!decision.has_value()) return;
  PlanRecord record;
  record.plan = decision->plan;
  record.plan.cause = PlacementCause::kTraffic;
  record.reason = decision->reason;
  record.predicted_gain = decision->gain;
  // An old plan's budget stays as it is, whatever the gpu_worker has.
  record.requested_bytes = live->plan.cause == PlacementCause::kRollback ? live->plan.budget_bytes
                                                                         : live->requested_bytes;
  const std::vector<LayerPlacement> before = live->plan.layers;
  if (const absl::Status status = Begin(std::move(record), std::nullopt); !status.ok()) {
    return Refused(status);
  }
  mover_.Moved(*decision, before);
}

void PlanPublisher::RecordGain() {
  const PlanRecord* live = UsableLive();
  if (live == nullptr) return;
  const std::optional<GainRecorder::Result> result = gains_.Take(live->plan.epoch);
  if (!result.has_value()) return;
  auto measured = std::make_shared<PlanRecord>(*live_);
  measured->measured_hit_share = result->hit_share;
  measured->measured_gain = result->gain;
  live_ = std::move(measured);
  ShowLive();
  const absl::Status status =
      store_.RecordMeasured(live_->plan.epoch, result->hit_share, result->gain);
  if (!status.ok()) {
    LogWarning("what epoch {} gained is not recorded: {}", live_->plan.epoch,
               std::string(status.message()));
  }
}

absl::StatusOr<RecomputationRecord> PlanPublisher::Recompute(RecomputeParams params) {
  Control control{.kind = Control::Kind::kRecompute,
                  .request_id = std::move(params.request_id),
                  .if_etag = std::move(params.if_etag),
                  .dry_run = params.dry_run,
                  .budget_bytes = params.budget_bytes};
  control.fingerprint = absl::StrCat(
      "recompute ", params.dry_run, " budget ",
      params.budget_bytes.has_value() ? absl::StrCat(*params.budget_bytes) : "as it is", " if ",
      control.if_etag);
  if (params.time_limit.count() > 0) control.deadline = clock_.Now() + params.time_limit;
  return EnqueueRecomputation(std::move(control));
}

absl::StatusOr<RecomputationRecord> PlanPublisher::ImportPlan(ImportPlanParams params) {
  Control control{.kind = Control::Kind::kImportPlan,
                  .request_id = std::move(params.request_id),
                  .if_etag = std::move(params.if_etag),
                  .dry_run = params.dry_run,
                  .source = std::move(params.source),
                  .layers = std::move(params.layers)};
  PlacementPlan contents;
  contents.layers = control.layers;
  control.fingerprint =
      absl::StrCat("import ", params.dry_run, " ", PlanChecksum(contents), " if ", control.if_etag);
  return EnqueueRecomputation(std::move(control));
}

absl::StatusOr<RecomputationRecord> PlanPublisher::EnqueueRecomputation(Control control) {
  ISOTHERM_RETURN_IF_ERROR(CheckControl(control));
  if (control.request_id.empty()) control.request_id = RandomId();
  ISOTHERM_ASSIGN_OR_RETURN(const std::optional<RecomputationRecord> known,
                            recomputations_->Find(control.request_id));
  if (known.has_value()) {
    if (known->fingerprint == control.fingerprint) return *known;
    return WithErrorReason(
        absl::InvalidArgumentError("request_id was used for another operation; take a new one"),
        {.reason = "INVALID_VALUE", .field = "request_id"});
  }
  RecomputationRecord record{
      .id = control.request_id, .fingerprint = control.fingerprint, .reason = "waits for its turn"};
  {
    absl::MutexLock lock(&mu_);
    if (stopped_) return StoppingStatus();
    ISOTHERM_RETURN_IF_ERROR(CheckEtag(control.if_etag, shown_->plan.etag));
  }
  if (!recomputations_->Start(record)) {
    return WithErrorReason(
        absl::FailedPreconditionError("another recomputation runs; wait until it has ended"),
        {.reason = "RECOMPUTE_RUNNING", .retry_after = std::chrono::seconds(1)});
  }
  absl::MutexLock lock(&mu_);
  controls_.push_back(std::move(control));
  return record;
}

absl::StatusOr<MoveDecision> PlanPublisher::DecideImport(const Control& control,
                                                         const PlanRecord* live) {
  const ModelShape& shape = facts_->shape;
  if (static_cast<int64_t>(control.layers.size()) != shape.num_layers) {
    return absl::FailedPreconditionError(absl::StrCat("the plan has ", control.layers.size(),
                                                      " layers, the model ", shape.num_layers));
  }
  MoveDecision out;
  for (size_t l = 0; l < control.layers.size(); ++l) {
    const LayerPlacement& layer = control.layers[l];
    if (layer.num_neurons != shape.num_neurons ||
        static_cast<int64_t>(layer.hot.size()) != CeilDiv<int64_t>(shape.num_neurons, 64)) {
      return absl::FailedPreconditionError(absl::StrCat("layer ", l, " of the plan has ",
                                                        layer.num_neurons, " neurons, the model ",
                                                        shape.num_neurons));
    }
    out.plan.used_bytes += layer.num_hot * shape.bundle_bytes;
  }
  if (out.plan.used_bytes > facts_->capacity_bytes) {
    return absl::FailedPreconditionError(
        absl::StrCat("the plan needs ", out.plan.used_bytes, " bytes, the gpu_worker has ",
                     facts_->capacity_bytes, "; import a smaller one or give the worker more"));
  }
  out.plan.layers = control.layers;
  out.plan.budget_bytes = out.plan.used_bytes;
  out.plan.solver = "import";
  out.plan.profile = control.source;
  out.reason = absl::StrCat("import of ", control.source);
  const TrafficEstimate estimate = traffic_.Estimate();
  if (estimate.tokens > 0) {
    SolveInput solve{.layers = Geometry(),
                     .frequency = estimate.frequency,
                     .bins = {SolveBin()},
                     .reads = estimate.reads};
    const double live_ns =
        PredictStepNs(solve, live != nullptr ? live->plan.layers : BuiltIn().plan.layers);
    out.plan.predicted_ns = PredictStepNs(solve, out.plan.layers);
    out.plan.objective = PredictHitShare(estimate.frequency, out.plan.layers);
    out.gain = live_ns > 0 ? (live_ns - out.plan.predicted_ns) / live_ns : 0;
  }
  const PlacementPlan before = live != nullptr ? live->plan : BuiltIn().plan;
  out.moved_neurons = MovedNeurons(before, out.plan);
  out.move = out.moved_neurons > 0;
  for (size_t l = 0; l < out.plan.layers.size(); ++l) {
    for (size_t w = 0; w < out.plan.layers[l].hot.size(); ++w) {
      out.in_bytes +=
          shape.bundle_bytes * std::popcount(out.plan.layers[l].hot[w] & ~before.layers[l].hot[w]);
    }
  }
  if (!out.move) out.reason = "the live plan has these hot sets already";
  return out;
}

absl::StatusOr<MoveDecision> PlanPublisher::Decide(const Control& control, const PlanRecord* live) {
  if (control.kind == Control::Kind::kImportPlan) return DecideImport(control, live);
  const int64_t wanted = control.budget_bytes.has_value() ? *control.budget_bytes
                         : live != nullptr                ? live->plan.budget_bytes
                                                          : facts_->capacity_bytes;
  const TrafficEstimate estimate = traffic_.Estimate();
  MoveInput input = MoveInputFor(std::min(wanted, facts_->capacity_bytes), live, estimate);
  // Another budget is wanted whatever it gains.
  input.required = live == nullptr || input.budget_bytes != live->plan.budget_bytes;
  return PlanMoves(input, options_.mover.policy);
}

void PlanPublisher::RunRecomputation(Control control) {
  RecomputationRecord record{.id = control.request_id, .fingerprint = control.fingerprint};
  const auto end = [&](RecomputationState state, absl::string_view reason) {
    record.state = state;
    if (!reason.empty()) record.reason = std::string(reason);
    recomputations_->End(std::move(record));
  };
  if (fenced_ || !facts_.has_value()) return end(RecomputationState::kFailed, round_blocked_);
  const PlanRecord* live = UsableLive();
  const absl::Status meant =
      CheckEtag(control.if_etag, live != nullptr ? live->plan.etag : BuiltIn().plan.etag);
  if (!meant.ok()) return end(RecomputationState::kFailed, meant.message());
  if (control.deadline.has_value() && clock_.Now() >= *control.deadline) {
    return end(RecomputationState::kFailed, "the time limit passed before its turn");
  }
  const absl::StatusOr<MoveDecision> decision = Decide(control, live);
  if (!decision.ok()) return end(RecomputationState::kFailed, decision.status().message());
  record.reason = decision->reason;
  record.predicted_gain = decision->gain;
  if (!decision->plan.layers.empty() && (decision->move || control.dry_run)) {
    record.proposal = decision->plan;
    record.moved_neurons = decision->moved_neurons;
    record.moved_bytes = decision->in_bytes;
  }
  if (control.dry_run) return end(RecomputationState::kProposed, "");
  if (!decision->move) return end(RecomputationState::kUnchanged, "");
  if (pinned()) {
    return end(RecomputationState::kUnchanged,
               absl::StrCat("the live plan is pinned; unpinned it would: ", decision->reason));
  }
  PlanRecord plan;
  plan.plan = decision->plan;
  plan.plan.cause = control.kind == Control::Kind::kImportPlan ? PlacementCause::kImport
                                                               : PlacementCause::kRecompute;
  plan.reason = decision->reason;
  plan.predicted_gain = decision->gain;
  plan.requested_bytes = control.kind == Control::Kind::kImportPlan ? decision->plan.budget_bytes
                         : control.budget_bytes.has_value()         ? *control.budget_bytes
                         : live != nullptr                          ? live->requested_bytes
                                                                    : kAutoBudget;
  const absl::Status status =
      Begin(std::move(plan),
            ControlRequest{.request_id = control.request_id, .fingerprint = control.fingerprint});
  if (!status.ok()) return end(RecomputationState::kFailed, status.message());
  record.state = RecomputationState::kCopying;
  recomputations_->Update(record);
  pending_deadline_ = control.deadline;
  copying_id_ = control.request_id;
  waiters_.push_back([this, record](const absl::StatusOr<PlanRecord>& result) mutable {
    record.state = result.ok() ? RecomputationState::kApplied : RecomputationState::kFailed;
    if (result.ok()) {
      record.proposal = result->plan;
    } else {
      record.reason = std::string(result.status().message());
    }
    recomputations_->End(std::move(record));
  });
}

}  // namespace isotherm
