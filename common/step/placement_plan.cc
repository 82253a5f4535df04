#include "common/step/placement_plan.h"

namespace isotherm {

uint64_t PlanChecksum(const PlacementPlan& plan) {
  // FNV-1a over words, with a final avalanche per word so that sparse bitmaps differ early.
  uint64_t hash = 0xcbf29ce484222325u;
  const auto mix = [&hash](uint64_t word) {
    word *= 0x9e3779b97f4a7c15u;
    word ^= word >> 32;
    hash = (hash ^ word) * 0x100000001b3u;
  };
  for (const LayerPlacement& layer : plan.layers) {
    mix(static_cast<uint64_t>(layer.num_neurons));
    for (const uint64_t word : layer.hot) mix(word);
  }
  return hash;
}

}  // namespace isotherm
