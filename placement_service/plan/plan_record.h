#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "common/step/placement_plan.h"

namespace isotherm {

// kPreparing: intended, durable before any worker hears of it. kLive: committed on every worker; at
// most one. kRetired: was live. kFailed: never was.
enum class PlanState { kPreparing, kLive, kRetired, kFailed };

inline constexpr int64_t kAutoBudget = -1;  // all that the gpu_worker has

struct PlanRecord {
  PlacementPlan plan;
  PlanState state = PlanState::kPreparing;
  int64_t moved_neurons = 0;  // hot now and cold in the plan before it, plus the reverse
  std::string message;        // why it failed
  std::string reason;         // why it was made, in words
  double predicted_gain = 0;  // share of the time of a step's layers, against the plan before
  // What was seen of it once it was live.
  std::optional<double> measured_hit_share, measured_gain;
  bool contents_kept = true;  // false: an old automatic plan whose hot sets were dropped
  int64_t requested_bytes = kAutoBudget;
  // The flags it was solved under: a start under other flags solves anew.
  std::string start_options;
};

// What a control operation's id stands for: the same id again gets the same answer.
struct ControlRequest {
  std::string request_id;
  std::string fingerprint;  // the operation and its arguments
  int64_t epoch = 0;        // the plan that answers it
};

}  // namespace isotherm
