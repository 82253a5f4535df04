#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace isotherm {

// Which neurons of each layer are hot: bit n % 64 of word n / 64.
struct LayerPlacement {
  std::vector<uint64_t> hot;  // ceil(num_neurons / 64) words, no bit set past num_neurons
  int64_t num_neurons = 0;
  int64_t num_hot = 0;
  double predicted_hit_share = 0;  // of the layer's expected activations, 0 to 1
};

// kTraffic: followed the traffic by itself; kRecompute: an operator or a job asked. Stored by
// number.
enum class PlacementCause { kInitial, kBudget, kRollback, kTraffic, kRecompute, kImport };

struct PlacementPlan {
  int64_t epoch = 0;
  std::string etag;
  std::string model_digest;
  int64_t budget_bytes = 0;
  int64_t used_bytes = 0;
  PlacementCause cause = PlacementCause::kInitial;
  int64_t created_unix_ms = 0;
  std::vector<LayerPlacement> layers;
  std::string profile;
  std::string solver;
  double objective = 0;    // expected share of activations that are hot
  int64_t from_epoch = 0;  // of a rollback
  // Expected time of a step in all FFN layers, and what no plan of the budget can be below; bytes
  // read by the cold side instead as long as no time was measured.
  double predicted_ns = 0, bound_ns = 0;
};

// Hash of the hot bitmaps of all layers; equal on every worker that took the same plan.
uint64_t PlanChecksum(const PlacementPlan& plan);

}  // namespace isotherm
