#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace isotherm::cli {

struct LayerShare {
  int64_t hot_neurons = 0;
  int64_t total_neurons = 0;
  double predicted_hit_share = 0;
};

struct PlacementInfo {
  int64_t epoch = 0;
  std::string etag;
  int64_t budget_bytes = 0;
  int64_t used_bytes = 0;
  std::string cause;  // "initial", "budget", "rollback"
  int64_t created_unix_ms = 0;
  std::string profile;
  std::string solver;
  double objective = 0;  // expected share of activations that are hot
  int64_t from_epoch = 0;
  std::vector<LayerShare> layers;
};

struct PlacementHistoryEntry {
  PlacementInfo plan;
  std::string state;  // "preparing", "live", "retired", "failed"
  int64_t moved_neurons = 0;
  std::string message;
};

struct BudgetInfo {
  int64_t requested_bytes = 0;
  int64_t effective_bytes = 0;
  int64_t floor_bytes = 0;
  int64_t used_bytes = 0;
};

struct BudgetChange {
  BudgetInfo budget;
  PlacementInfo plan;
};

// A placement_service, as operators use it.
class PlacementClient {
 public:
  virtual ~PlacementClient() = default;
  virtual absl::StatusOr<PlacementInfo> Show(int64_t epoch) = 0;  // 0: the live one
  virtual absl::StatusOr<std::vector<PlacementHistoryEntry>> History(int64_t count) = 0;
  virtual absl::StatusOr<PlacementInfo> Rollback(int64_t to_epoch) = 0;
  virtual absl::StatusOr<BudgetChange> SetBudget(int64_t bytes) = 0;
};

}  // namespace isotherm::cli
