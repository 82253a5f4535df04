#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/step/device_memory_use.h"

namespace isotherm::cli {

struct LayerShare {
  int64_t hot_neurons = 0;
  int64_t total_neurons = 0;
  double predicted_hit_share = 0;
  std::vector<uint64_t> hot;  // which ones; empty unless asked for
};

// What was seen of one layer of the live plan.
struct LayerSeen {
  double hit_share = 0;
  double gpu_us = 0, cpu_us = 0, wait_us = 0, merge_us = 0;  // of a decode step
};

// Where the bytes of the gpu_worker's device are.
struct MemoryInfo {
  std::string device;
  DeviceMemoryUse use;
};

struct PlacementInfo {
  int64_t epoch = 0;
  std::string etag;
  int64_t budget_bytes = 0;
  int64_t used_bytes = 0;
  std::string cause;  // "initial", "budget", "rollback", "traffic", "recompute", "import"
  int64_t created_unix_ms = 0;
  std::string profile;
  std::string solver;
  double objective = 0;  // expected share of activations that are hot
  int64_t from_epoch = 0;
  double predicted_ns = 0, bound_ns = 0;  // of a step's layers; 0: not told
  std::vector<LayerShare> layers;
  // Of the live one only.
  bool pinned = false;
  std::string status;  // why neurons move or stay
  std::vector<LayerSeen> seen;
  double seen_hit_share = 0;
  int64_t seen_tokens = 0;           // 0: nothing was seen yet
  std::optional<MemoryInfo> memory;  // none: the gpu_worker is away, or of an older release
};

struct PlacementHistoryEntry {
  PlacementInfo plan;
  std::string state;  // "preparing", "live", "retired", "failed"
  int64_t moved_neurons = 0;
  std::string message;
  std::string reason;
  double predicted_gain = 0;  // share of the time of a step's layers
  std::optional<double> measured_hit_share, measured_gain;
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

struct RecomputeRequest {
  std::string request_id;
  bool dry_run = false;
  std::optional<int64_t> budget_bytes;
  int64_t time_limit_us = 0;
  std::string if_etag;
};

struct RecomputationInfo {
  std::string id;
  std::string state;  // "queued", "copying", "applied", "unchanged", "proposed", "failed"
  bool ended = false;
  double progress = 0;
  std::optional<PlacementInfo> proposal;
  int64_t moved_neurons = 0;
  int64_t moved_bytes = 0;
  double predicted_gain = 0;
  std::string reason;
};

struct ProfileInfo {
  std::string model_digest, name;
  double tokens = 0;
  std::vector<std::vector<float>> predicted, fired;  // [num_layers][num_neurons]
};

struct PlanImport {
  std::string request_id;
  bool dry_run = false;
  std::string source;
  int64_t num_neurons = 0;
  std::vector<std::vector<uint64_t>> hot;  // [num_layers]
};

// One of them is set.
struct PlacementEvent {
  int64_t sequence = 0;
  std::optional<PlacementInfo> plan;
  std::string state, message;  // of plan
  std::optional<RecomputationInfo> recomputation;
  std::optional<BudgetInfo> budget;
  std::string alarm;
};

// A placement_service, as operators use it.
class PlacementClient {
 public:
  virtual ~PlacementClient() = default;
  virtual absl::StatusOr<PlacementInfo> Show(int64_t epoch, bool which) = 0;  // 0: the live one
  virtual absl::StatusOr<std::vector<PlacementHistoryEntry>> History(int64_t count) = 0;
  virtual absl::StatusOr<PlacementInfo> Rollback(int64_t to_epoch) = 0;
  virtual absl::StatusOr<BudgetChange> SetBudget(int64_t bytes) = 0;
  virtual absl::StatusOr<PlacementInfo> SetPin(bool pinned) = 0;
  virtual absl::StatusOr<RecomputationInfo> Recompute(const RecomputeRequest& request) = 0;
  virtual absl::StatusOr<RecomputationInfo> ImportPlan(const PlanImport& plan) = 0;
  virtual absl::StatusOr<ProfileInfo> GetProfile() = 0;
  virtual absl::Status ImportProfile(const ProfileInfo& profile) = 0;
  // Until `take` returns false or the service ends the stream.
  virtual absl::Status Watch(const std::function<bool(const PlacementEvent&)>& take) = 0;
};

}  // namespace isotherm::cli
