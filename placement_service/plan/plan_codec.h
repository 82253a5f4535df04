#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/step/placement_plan.h"

namespace isotherm {

// Stored form of a plan's layers, little-endian, version 1: u32 version, u32 num_layers; per layer
// i64 num_neurons, i64 num_hot, f64 predicted_hit_share, then ceil(num_neurons / 64) u64 words;
// last PlanChecksum as u64.
std::string EncodeLayers(const PlacementPlan& plan);

// DataLoss (exit code 65) for anything EncodeLayers would not write: sizes are checked before
// memory is taken, bits past the last neuron, counts and the checksum after. Without `bitmaps` the
// words are checked and left out.
absl::StatusOr<std::vector<LayerPlacement>> DecodeLayers(absl::string_view bytes, bool bitmaps);

// Names a plan's contents: model, budget and hot sets, whatever epoch publishes them.
std::string PlanEtag(const PlacementPlan& plan);

// Neurons whose owner differs between two plans of one model; `before` may have no layers: all
// cold.
int64_t MovedNeurons(const PlacementPlan& before, const PlacementPlan& after);

}  // namespace isotherm
