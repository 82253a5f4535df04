#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "isotherm/v1/placement.pb.h"
#include "placement_service/plan/plan_feed.h"
#include "placement_service/plan/plan_publisher.h"
#include "placement_service/plan/plan_record.h"
#include "placement_service/telemetry/traffic_model.h"

namespace isotherm {

v1::PlanState ToProto(PlanState state);
v1::WatchResponse ToProto(const PlanEvent& event);
v1::HistoryEntry ToProto(const PlanRecord& record);
v1::Recomputation ToProto(const RecomputationRecord& record);
v1::LayerMeasurement ToProto(const Measurement::Layer& layer);
v1::GetProfileResponse ToProto(const StoredProfile& profile);
// The budget a plan was made under.
v1::Budget BudgetOf(const PlanRecord& record);

ImportProfileParams FromProto(const v1::ImportProfileRequest& request);
// InvalidArgument for bitmaps that contradict their counts.
absl::StatusOr<ImportPlanParams> FromProto(const v1::ImportPlanRequest& request);

}  // namespace isotherm
