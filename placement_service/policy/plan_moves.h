#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/step/placement_plan.h"
#include "placement_service/solver/solve_placement.h"
#include "placement_service/telemetry/traffic_model.h"

namespace isotherm {

struct MovePolicy {
  // Standard errors by which a neuron that comes must be better than it looks and one that goes
  // worse: a swap clears 2 to 2.8 of its own.
  double sigmas = 2;
  // A copy reads and writes the bundle once; what it gains must make up for it within so many
  // tokens.
  double horizon_tokens = 20'000;
  // Least gain, as a share of the layers' time, for which a change is worth an epoch.
  double min_gain = 0.002;
};

struct MoveInput {
  const TrafficEstimate* traffic = nullptr;
  std::vector<LayerGeometry> layers;
  int64_t budget_bytes = 0;
  std::vector<LayerPlacement> live;  // empty: everything is cold
  // At most so much is copied in; what is left out is what gains least.
  int64_t max_in_bytes = std::numeric_limits<int64_t>::max();
  bool use_times = false;  // the measured costs, if there are any; else bytes
  bool required = false;   // the budget changed: the best of it, whatever it gains
};

struct MoveDecision {
  bool move = false;
  std::string reason;  // in words, either way
  PlacementPlan plan;  // of `move`: layers, budget, use, shares, solver, profile, predictions
  int64_t in_bytes = 0, out_bytes = 0;
  int64_t moved_neurons = 0;  // in and out
  double gain = 0;            // share of the time that a step's layers are predicted to take
  double live_hit_share = 0;  // expected if nothing moves
  bool limited = false;       // more would have moved without max_in_bytes
};

// Which neurons to move, if any: the optimum of a solution in which those that are hot look better
// and those that are cold worse by what a move must gain. A pure function. InvalidArgument as
// SolvePlacement.
absl::StatusOr<MoveDecision> PlanMoves(const MoveInput& input, const MovePolicy& policy,
                                       SolveHints* hints = nullptr);

}  // namespace isotherm
