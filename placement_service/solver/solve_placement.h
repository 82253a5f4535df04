#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "common/step/placement_plan.h"

namespace isotherm {

struct LayerGeometry {
  int64_t num_neurons = 0;
  int64_t bundle_bytes = 0;  // of one neuron
};

struct SolveInput {
  std::vector<LayerGeometry> layers;
  // [num_layers][num_neurons]: expected firings a token, finite and >= 0. Empty: nothing is known,
  // every layer gets the same number of hot neurons, the lowest ids.
  std::span<const std::vector<float>> frequency;
  int64_t budget_bytes = 0;  // of all hot bundles together; >= 0
};

// The hot set that catches the largest expected share of activations within the budget: a pure
// function, no clock and no randomness. A neuron kept hot saves one read of its bundle each time it
// fires, so the gain of a layer is concave in the number kept (by falling frequency) and the
// optimum is one threshold on frequency per byte for all layers. Equal frequency: lowest layer,
// then lowest id. With one bundle size the result is the optimum; with several it lies within one
// neuron's frequency of the fractional bound.
//
// The plan returned has layers, used_bytes, budget_bytes, objective (expected share of activations
// that are hot; of neurons when nothing is known) and solver; the caller adds the rest.
// InvalidArgument: no layers, sizes out of bounds or unequal to the profile's, negative budget, a
// frequency that is NaN, infinite or negative.
absl::StatusOr<PlacementPlan> SolvePlacement(const SolveInput& input);

}  // namespace isotherm
