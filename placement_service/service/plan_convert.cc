#include "placement_service/service/plan_convert.h"

#include <algorithm>
#include <utility>

#include "common/base/status_macros.h"
#include "common/rpc/step_convert.h"

namespace isotherm {
namespace {

v1::RecomputationState ToProto(RecomputationState state) {
  switch (state) {
    case RecomputationState::kQueued:
      return v1::RECOMPUTATION_STATE_QUEUED;
    case RecomputationState::kCopying:
      return v1::RECOMPUTATION_STATE_COPYING;
    case RecomputationState::kApplied:
      return v1::RECOMPUTATION_STATE_APPLIED;
    case RecomputationState::kUnchanged:
      return v1::RECOMPUTATION_STATE_UNCHANGED;
    case RecomputationState::kProposed:
      return v1::RECOMPUTATION_STATE_PROPOSED;
    case RecomputationState::kFailed:
      return v1::RECOMPUTATION_STATE_FAILED;
  }
  return v1::RECOMPUTATION_STATE_UNSPECIFIED;
}

}  // namespace

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

v1::Recomputation ToProto(const RecomputationRecord& record) {
  v1::Recomputation out;
  out.set_id(record.id);
  out.set_state(ToProto(record.state));
  out.set_progress(record.progress);
  if (!record.proposal.layers.empty()) {
    *out.mutable_proposal() = rpc::ToProto(record.proposal, /*include_bitmaps=*/false);
  }
  out.set_moved_neurons(record.moved_neurons);
  out.set_moved_bytes(record.moved_bytes);
  out.set_predicted_gain(record.predicted_gain);
  out.set_reason(record.reason);
  return out;
}

v1::WatchResponse ToProto(const PlanEvent& event) {
  v1::WatchResponse out;
  out.set_sequence(event.sequence);
  switch (event.kind) {
    case PlanEvent::Kind::kPlan:
      *out.mutable_plan() = rpc::ToProto(event.plan, /*include_bitmaps=*/false);
      out.set_state(ToProto(event.state));
      out.set_message(event.message);
      break;
    case PlanEvent::Kind::kRecomputation:
      *out.mutable_recomputation() = ToProto(*event.recomputation);
      break;
    case PlanEvent::Kind::kBudget:
      *out.mutable_budget() = BudgetOf(*event.budget);
      break;
    case PlanEvent::Kind::kAlarm:
      out.set_alarm(event.message);
      break;
  }
  return out;
}

v1::HistoryEntry ToProto(const PlanRecord& record) {
  v1::HistoryEntry out;
  *out.mutable_plan() = rpc::ToProto(record.plan, /*include_bitmaps=*/false);
  out.set_state(ToProto(record.state));
  out.set_moved_neurons(record.moved_neurons);
  out.set_message(record.message);
  out.set_reason(record.reason);
  out.set_predicted_gain(record.predicted_gain);
  if (record.measured_hit_share.has_value()) {
    out.set_measured_hit_share(*record.measured_hit_share);
  }
  if (record.measured_gain.has_value()) out.set_measured_gain(*record.measured_gain);
  return out;
}

v1::LayerMeasurement ToProto(const Measurement::Layer& layer) {
  v1::LayerMeasurement out;
  out.set_hit_share(layer.hit_share);
  out.set_gpu_us(layer.gpu_us);
  out.set_cpu_us(layer.cpu_us);
  out.set_wait_us(layer.wait_us);
  out.set_merge_us(layer.merge_us);
  return out;
}

v1::GetProfileResponse ToProto(const StoredProfile& profile) {
  v1::GetProfileResponse out;
  out.set_model_digest(profile.model_digest);
  out.set_name(profile.name);
  double tokens = profile.layers.empty() ? 0 : profile.layers.front().tokens;
  for (const LiveProfile::Layer& layer : profile.layers) {
    tokens = std::min(tokens, layer.tokens);
    v1::ProfileLayer* entry = out.add_layers();
    entry->mutable_predicted()->Add(layer.predicted.begin(), layer.predicted.end());
    entry->mutable_fired()->Add(layer.fired.begin(), layer.fired.end());
  }
  out.set_tokens(tokens);
  return out;
}

v1::Budget BudgetOf(const PlanRecord& record) {
  v1::Budget out;
  out.set_requested_bytes(record.requested_bytes == kAutoBudget ? record.plan.budget_bytes
                                                                : record.requested_bytes);
  out.set_effective_bytes(record.plan.budget_bytes);
  out.set_floor_bytes(0);
  out.set_used_bytes(record.plan.used_bytes);
  return out;
}

ImportProfileParams FromProto(const v1::ImportProfileRequest& request) {
  ImportProfileParams out{.request_id = request.request_id(),
                          .name = request.name().empty() ? "import" : request.name(),
                          .tokens = request.tokens()};
  bool fired = false;
  for (const v1::ProfileLayer& layer : request.layers()) {
    out.predicted.emplace_back(layer.predicted().begin(), layer.predicted().end());
    out.fired.emplace_back(layer.fired().begin(), layer.fired().end());
    fired |= layer.fired_size() > 0;
  }
  if (!fired) out.fired.clear();
  return out;
}

absl::StatusOr<ImportPlanParams> FromProto(const v1::ImportPlanRequest& request) {
  v1::PlacementPlan plan;
  *plan.mutable_layers() = request.layers();
  ISOTHERM_ASSIGN_OR_RETURN(PlacementPlan layers, rpc::FromProto(plan));
  return ImportPlanParams{.request_id = request.request_id(),
                          .dry_run = request.dry_run(),
                          .source = request.source(),
                          .if_etag = request.if_etag(),
                          .layers = std::move(layers.layers)};
}

}  // namespace isotherm
