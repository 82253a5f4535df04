#pragma once

#include <string>

#include "isotherm/v1/placement.pb.h"
#include "placement_service/plan/plan_feed.h"
#include "placement_service/plan/plan_record.h"

namespace isotherm {

v1::PlanState ToProto(PlanState state);
v1::WatchResponse ToProto(const PlanEvent& event);
v1::HistoryEntry ToProto(const PlanRecord& record);
// The budget a plan was made under.
v1::Budget BudgetOf(const PlanRecord& record);

}  // namespace isotherm
