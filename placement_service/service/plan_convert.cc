#include "placement_service/service/plan_convert.h"

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

v1::WatchResponse ToProto(const PlanEvent& event) {
  v1::WatchResponse out;
  out.set_sequence(event.sequence);
  *out.mutable_plan() = rpc::ToProto(event.plan, /*include_bitmaps=*/false);
  out.set_state(ToProto(event.state));
  out.set_message(event.message);
  return out;
}

v1::HistoryEntry ToProto(const PlanRecord& record) {
  v1::HistoryEntry out;
  *out.mutable_plan() = rpc::ToProto(record.plan, /*include_bitmaps=*/false);
  out.set_state(ToProto(record.state));
  out.set_moved_neurons(record.moved_neurons);
  out.set_message(record.message);
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

}  // namespace isotherm
