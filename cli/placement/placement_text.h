#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "cli/client/placement_client.h"

namespace isotherm::cli {

// What placement verbs print, as text for a terminal and as JSON.

std::string Timestamp(int64_t unix_ms);

std::string PlanText(const PlacementInfo& plan);
nlohmann::ordered_json PlanJson(const PlacementInfo& plan, bool with_layers);

std::string HistoryText(const std::vector<PlacementHistoryEntry>& entries);
nlohmann::ordered_json HistoryJson(const std::vector<PlacementHistoryEntry>& entries);

std::string RecomputationText(const RecomputationInfo& recomputation);
nlohmann::ordered_json RecomputationJson(const RecomputationInfo& recomputation);

// One line each.
std::string EventText(const PlacementEvent& event);
nlohmann::ordered_json EventJson(const PlacementEvent& event);

// What changes from `a` to `b`, by layer. InvalidArgument when they are of different models' shapes
// or lack their hot sets.
struct LayerDiff {
  int64_t in = 0, out = 0, both = 0;
  double share_before = 0, share_after = 0;  // expected hits
};
absl::StatusOr<std::vector<LayerDiff>> DiffPlans(const PlacementInfo& a, const PlacementInfo& b);
std::string DiffText(const PlacementInfo& a, const PlacementInfo& b,
                     const std::vector<LayerDiff>& layers);
nlohmann::ordered_json DiffJson(const PlacementInfo& a, const PlacementInfo& b,
                                const std::vector<LayerDiff>& layers);

}  // namespace isotherm::cli
