#pragma once

#include <cstdint>
#include <string>

#include "common/step/placement_plan.h"

namespace isotherm {

// What became of a wish for a better plan. Stored by number once it has ended.
enum class RecomputationState { kQueued, kCopying, kApplied, kUnchanged, kProposed, kFailed };

struct RecomputationRecord {
  std::string id;
  std::string fingerprint;  // the operation and its arguments
  RecomputationState state = RecomputationState::kQueued;
  double progress = 0;     // 0 to 1
  PlacementPlan proposal;  // without bitmaps where it was not computed here
  int64_t moved_neurons = 0;
  int64_t moved_bytes = 0;
  double predicted_gain = 0;  // share of the time of a step's layers
  std::string reason;         // in words
  bool ended() const { return state >= RecomputationState::kApplied; }
};

}  // namespace isotherm
