#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "placement_service/solver/layer_curve.h"
#include "placement_service/solver/solve_placement.h"

namespace isotherm {

// Splits one bin's budget over its layers. See SolvePlacement for what is solved; the input was
// checked there.
class BinSolver {
 public:
  struct LayerInput {
    std::span<const float> reads;  // [num_neurons]
    int64_t bundle_bytes = 0;
  };
  struct Answer {
    std::vector<int64_t> num_hot;  // [num_layers]
    double time = 0;               // of a step in all layers
    double bound = 0;              // no hot set within the budget takes less
  };

  // `thresholds` [num_layers][nodes, at least 1]: about where the last hot neuron of a layer and
  // node is expected, by its reads; empty: found from a sample.
  BinSolver(const SolveBin& bin, std::span<const SolveNode> nodes,
            const std::vector<LayerInput>& layers, std::vector<float> thresholds);

  // False when a value of the layer is not a number or infinite: there is nothing to solve then.
  bool finite(size_t layer) const;
  Answer Solve();
  // After Solve(): makes the layer's neurons hot; where its last ones were, as `thresholds`.
  void Select(size_t layer, LayerPlacement& placement) const;
  std::vector<float> thresholds(size_t layer) const;

 private:
  struct Layer {
    LayerInput input;
    std::unique_ptr<LayerCurve> curve;
    float window = 1;     // around its thresholds
    bool sorted = false;  // all of the curve
    int64_t cross = 0;    // the first k whose hot side is the slower one; size + 1: none
    int64_t useful = 0;   // how many of the best it makes sense to keep while some stay cold
    double whole_time = 0;
    int64_t size() const { return curve->size(); }
  };
  struct Fill {
    std::vector<int64_t> num_hot;
    double time = 0;
    double lambda = 0;  // of the convex part
  };

  size_t per_layer() const { return std::max<size_t>(1, nodes_.size()); }
  void BuildCurve(size_t layer, std::span<const float> thresholds, float window);
  void SampleThresholds();
  double Cold(const Layer& layer, int64_t k) const;
  double Hot(const Layer& layer, int64_t k) const;
  double Time(const Layer& layer, int64_t k) const;
  int64_t CountAt(const Layer& layer, double lambda) const;
  bool PrefersWhole(const Layer& layer, double lambda) const;
  double BoundAt(double lambda) const;
  double MaxLambda() const;
  template <typename BytesAt>
  double SmallestLambda(int64_t budget, const BytesAt& bytes_at) const;
  bool FillAround(const std::vector<bool>& whole, Fill* fill);
  bool Widen(size_t layer);

  const SolveBin bin_;
  const std::span<const SolveNode> nodes_;
  const bool by_node_;  // a neuron's gain depends on the node that has it
  std::vector<float> thresholds_;
  std::vector<Layer> layers_;
  Fill best_;
};

}  // namespace isotherm
