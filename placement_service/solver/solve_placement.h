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
  int32_t bin = 0;           // the gpu_worker that has the layer, an index into `bins`
};

// What one gpu_worker has for hot neurons, and what a step costs there. Times are nanoseconds when
// they were measured; only their ratios decide. The defaults count bytes read by the cold side.
struct SolveBin {
  int64_t budget_bytes = 0;  // of all hot bundles in the bin together; >= 0
  // A layer's step takes max(cold, hot) when any neuron is cold, else hot alone:
  //   cold = cold_fixed + cold_per_byte * bytes read of cold neurons
  //   hot  = hot_fixed  + hot_per_byte  * bytes read of hot neurons
  double cold_fixed = 0;     // hand-off, waking, merge
  double cold_per_byte = 1;  // > 0; what the gpu reads of the cold ones (tier 3) taken off already
  double hot_fixed = 0;
  double hot_per_byte = 0;
};

// A NUMA node's cpu_worker: it computes the cold ones of a layer's ids from the last node's end to
// its own. A layer waits for the slowest node.
struct SolveNode {
  double share_end = 1;    // of the layer's ids; ascending, the last is 1
  double cost_factor = 1;  // on cold_per_byte, for its own bytes
};

struct SolveInput {
  std::vector<LayerGeometry> layers;
  // [num_layers][num_neurons]: expected firings a step, finite and >= 0. Empty: nothing is known,
  // every layer gets the same number of hot neurons, the lowest ids.
  std::span<const std::vector<float>> frequency;
  std::vector<SolveBin> bins;
  // [num_layers][num_neurons]: expected bytes a step that the side which has the neuron reads, with
  // what a move must gain taken off the cold ones and added to the hot ones; finite. A neuron below
  // 0 stays cold. Empty: frequency * bundle_bytes.
  std::span<const std::vector<float>> reads;
  std::vector<SolveNode> nodes;  // empty: one
};

// Where the last plan's thresholds lay: makes the next solution faster, never different. One for a
// model; used by one call at a time.
struct SolveHints {
  std::vector<float> threshold;  // [num_layers][nodes, at least 1]
};

// The hot set under which a step is expected to take the least time in all layers: a pure function,
// no clock and no randomness.
//
// Kept hot, a neuron saves the cold side's reading. By falling reads a layer's time is convex in
// the number kept, down to the balance point where its hot side becomes the slower one; so the
// optimum is one threshold on time saved per byte used for all layers of a bin, and layers that
// reach their balance point stop there. A layer without cold neurons saves the hand-off too, which
// is not convex: the Lagrangian relaxation proposes which layers to keep whole, and the best of
// its proposals is taken. Equal gain: lowest layer, then lowest id.
//
// With one bundle size and nothing but bytes to save the result is the optimum; balance points,
// several sizes and several nodes leave it within one neuron a layer of it; `bound_ns` says how far
// it can be at most.
//
// The plan returned has layers, used_bytes, budget_bytes, objective (expected share of activations
// that are hot; of neurons when nothing is known), solver, predicted_ns and bound_ns; the caller
// adds the rest. InvalidArgument: no layers, sizes out of bounds or unequal to the profile's, a
// layer without bin, a negative budget or cost, a value that is NaN or infinite.
absl::StatusOr<PlacementPlan> SolvePlacement(const SolveInput& input, SolveHints* hints = nullptr);

// The expected time of a step under any hot set, as the solver counts it. `layers`: as in a plan,
// with bitmaps, of the input's shape.
double PredictStepNs(const SolveInput& input, std::span<const LayerPlacement> layers);

// Expected share of activations that are hot under the plan's hot sets; sets each layer's
// predicted_hit_share too. `frequency` as in SolveInput, not empty; 0 if it breaks the rules there.
double PredictHitShare(std::span<const std::vector<float>> frequency,
                       std::vector<LayerPlacement>& layers);

}  // namespace isotherm
