#pragma once

#include <vector>

#include "common/step/placement_plan.h"

namespace isotherm {

// Sees when neurons go back to where they came from, again and again: traffic then swings at about
// the pace at which the profile forgets, and following it copies much and gains nothing. The cure
// is a longer memory, under which the swings become a mixture. Used by one thread.
class ReversalWatch {
 public:
  static constexpr double kMaxMemory = 64;

  // Neurons that differ between the plans moved at `tokens`. `half_life`: of the profile now, in
  // tokens.
  void Moved(const std::vector<LayerPlacement>& before, const std::vector<LayerPlacement>& after,
             double tokens, double half_life);
  // How many times as long as usual the memory is to be.
  double Memory(double tokens, double half_life);

 private:
  std::vector<std::vector<float>> moved_at_;  // [num_layers][num_neurons], tokens
  double reversed_ = 0;                       // recent share of moves that were reversals
  double memory_ = 1;
  double changed_at_ = 0;  // tokens; memory_ or a reversal
};

}  // namespace isotherm
