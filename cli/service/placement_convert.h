#pragma once

#include "cli/client/placement_client.h"
#include "isotherm/v1/placement.pb.h"

namespace isotherm::cli {

PlacementInfo FromProto(const v1::PlacementPlan& plan);
PlacementInfo FromProto(const v1::GetPlacementResponse& response);
PlacementHistoryEntry FromProto(const v1::HistoryEntry& entry);
RecomputationInfo FromProto(const v1::Recomputation& recomputation);
BudgetInfo FromProto(const v1::Budget& budget);
PlacementEvent FromProto(const v1::WatchResponse& event);
ProfileInfo FromProto(const v1::GetProfileResponse& profile);

}  // namespace isotherm::cli
