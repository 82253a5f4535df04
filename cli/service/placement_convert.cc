#include "cli/service/placement_convert.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "common/rpc/step_convert.h"

namespace isotherm::cli {
namespace {

std::string CauseName(v1::PlacementCause cause) {
  switch (cause) {
    case v1::PLACEMENT_CAUSE_INITIAL:
      return "initial";
    case v1::PLACEMENT_CAUSE_BUDGET:
      return "budget";
    case v1::PLACEMENT_CAUSE_ROLLBACK:
      return "rollback";
    case v1::PLACEMENT_CAUSE_TRAFFIC:
      return "traffic";
    case v1::PLACEMENT_CAUSE_RECOMPUTE:
      return "recompute";
    case v1::PLACEMENT_CAUSE_IMPORT:
      return "import";
    default:
      return "built in";
  }
}

std::string StateName(v1::PlanState state) {
  switch (state) {
    case v1::PLAN_STATE_PREPARING:
      return "preparing";
    case v1::PLAN_STATE_LIVE:
      return "live";
    case v1::PLAN_STATE_RETIRED:
      return "retired";
    case v1::PLAN_STATE_FAILED:
      return "failed";
    default:
      return "unknown";
  }
}

std::string StateName(v1::RecomputationState state) {
  switch (state) {
    case v1::RECOMPUTATION_STATE_QUEUED:
      return "queued";
    case v1::RECOMPUTATION_STATE_COPYING:
      return "copying";
    case v1::RECOMPUTATION_STATE_APPLIED:
      return "applied";
    case v1::RECOMPUTATION_STATE_UNCHANGED:
      return "unchanged";
    case v1::RECOMPUTATION_STATE_PROPOSED:
      return "proposed";
    case v1::RECOMPUTATION_STATE_FAILED:
      return "failed";
    default:
      return "unknown";
  }
}

std::vector<uint64_t> WordsOf(const std::string& bitmap) {
  static_assert(std::endian::native == std::endian::little);
  std::vector<uint64_t> words((bitmap.size() + 7) / 8, 0);
  if (!bitmap.empty()) std::memcpy(words.data(), bitmap.data(), bitmap.size());
  return words;
}

}  // namespace

PlacementInfo FromProto(const v1::PlacementPlan& plan) {
  PlacementInfo info{.epoch = plan.epoch(),
                     .etag = plan.etag(),
                     .budget_bytes = plan.budget_bytes(),
                     .used_bytes = plan.used_bytes(),
                     .cause = CauseName(plan.cause()),
                     .created_unix_ms = plan.created_unix_ms(),
                     .profile = plan.profile(),
                     .solver = plan.solver(),
                     .objective = plan.objective(),
                     .from_epoch = plan.from_epoch(),
                     .predicted_ns = plan.predicted_ns(),
                     .bound_ns = plan.bound_ns()};
  for (const v1::LayerPlacement& layer : plan.layers()) {
    info.layers.push_back({layer.gpu_neurons(), layer.total_neurons(), layer.predicted_hit_share(),
                           WordsOf(layer.gpu_bitmap())});
  }
  return info;
}

PlacementInfo FromProto(const v1::GetPlacementResponse& response) {
  PlacementInfo info = FromProto(response.plan());
  info.pinned = response.pinned();
  info.status = response.status();
  info.seen_hit_share = response.measured_hit_share();
  info.seen_tokens = response.measured_tokens();
  if (response.has_memory())
    info.memory = {.device = response.device(), .use = rpc::FromProto(response.memory())};
  for (const v1::LayerMeasurement& layer : response.measured()) {
    info.seen.push_back(
        {layer.hit_share(), layer.gpu_us(), layer.cpu_us(), layer.wait_us(), layer.merge_us()});
  }
  return info;
}

PlacementHistoryEntry FromProto(const v1::HistoryEntry& entry) {
  PlacementHistoryEntry out{.plan = FromProto(entry.plan()),
                            .state = StateName(entry.state()),
                            .moved_neurons = entry.moved_neurons(),
                            .message = entry.message(),
                            .reason = entry.reason(),
                            .predicted_gain = entry.predicted_gain()};
  if (entry.has_measured_hit_share()) out.measured_hit_share = entry.measured_hit_share();
  if (entry.has_measured_gain()) out.measured_gain = entry.measured_gain();
  return out;
}

RecomputationInfo FromProto(const v1::Recomputation& recomputation) {
  RecomputationInfo out{.id = recomputation.id(),
                        .state = StateName(recomputation.state()),
                        .ended = recomputation.state() >= v1::RECOMPUTATION_STATE_APPLIED,
                        .progress = recomputation.progress(),
                        .moved_neurons = recomputation.moved_neurons(),
                        .moved_bytes = recomputation.moved_bytes(),
                        .predicted_gain = recomputation.predicted_gain(),
                        .reason = recomputation.reason()};
  if (recomputation.has_proposal()) out.proposal = FromProto(recomputation.proposal());
  return out;
}

BudgetInfo FromProto(const v1::Budget& budget) {
  return {budget.requested_bytes(), budget.effective_bytes(), budget.floor_bytes(),
          budget.used_bytes()};
}

PlacementEvent FromProto(const v1::WatchResponse& event) {
  PlacementEvent out{.sequence = event.sequence()};
  if (event.has_recomputation()) {
    out.recomputation = FromProto(event.recomputation());
  } else if (event.has_budget()) {
    out.budget = FromProto(event.budget());
  } else if (!event.alarm().empty()) {
    out.alarm = event.alarm();
  } else {
    out.plan = FromProto(event.plan());
    out.state = StateName(event.state());
    out.message = event.message();
  }
  return out;
}

ProfileInfo FromProto(const v1::GetProfileResponse& profile) {
  ProfileInfo out{
      .model_digest = profile.model_digest(), .name = profile.name(), .tokens = profile.tokens()};
  for (const v1::ProfileLayer& layer : profile.layers()) {
    out.predicted.emplace_back(layer.predicted().begin(), layer.predicted().end());
    out.fired.emplace_back(layer.fired().begin(), layer.fired().end());
  }
  return out;
}

}  // namespace isotherm::cli
