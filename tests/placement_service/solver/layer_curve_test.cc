#include "placement_service/solver/layer_curve.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace isotherm {
namespace {

struct NodesLayer {
  std::vector<float> reads;
  std::vector<SolveNode> nodes;
};

NodesLayer RandomLayer(std::mt19937& random) {
  std::uniform_real_distribution<float> unit(0.0f, 1.0f);
  NodesLayer out;
  const size_t nodes = 1 + random() % 4;
  for (size_t m = 0; m < nodes; ++m) {
    out.nodes.push_back({static_cast<double>(m + 1) / static_cast<double>(nodes),
                         0.5 + static_cast<double>(unit(random))});
  }
  const float repeat = random() % 2 == 0 ? 1000.0f : 20.0f;  // few values: many ties
  for (size_t n = 0; n < 150 + random() % 300; ++n) {
    out.reads.push_back(std::round(repeat * -std::log(1 - unit(random))));
  }
  return out;
}

uint64_t HotWord(const LayerCurve& curve, int64_t k, size_t word) {
  LayerPlacement placement;
  placement.hot.resize((static_cast<size_t>(curve.size()) + 63) / 64);
  curve.Select(k, placement);
  EXPECT_EQ(placement.num_hot, k);
  return placement.hot[word];
}

// Whatever the windows, what is covered is as if everything were sorted; and windows around where
// the nodes' last hot neurons are cover them.
TEST(LayerCurveTest, AWindowChangesNothingWithinIt) {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> unit(0.0f, 1.0f);
  int covered = 0, layers = 0;
  for (int i = 0; i < 400; ++i) {
    const NodesLayer layer = RandomLayer(random);
    const std::vector<ReadsWindow> all(layer.nodes.size());
    const LayerCurve sorted(layer.reads, layer.nodes, all);
    ASSERT_EQ(sorted.last(), sorted.size());
    const int64_t wanted = static_cast<int64_t>(random() % 100) * sorted.size() / 100;
    std::vector<ReadsWindow> windows;
    const float width = 1.1f + unit(random);
    for (size_t m = 0; m < layer.nodes.size(); ++m) {
      const auto [begin, end] = NodeRange(layer.nodes, m, sorted.size());
      const float middle = sorted.ReadsAt(wanted, begin, end);
      windows.push_back(middle > 0 ? ReadsWindow{middle / width, middle * width} : ReadsWindow());
    }
    const LayerCurve curve(layer.reads, layer.nodes, windows);
    EXPECT_DOUBLE_EQ(curve.total(), sorted.total());
    ++layers;
    covered += curve.Covers(wanted) ? 1 : 0;
    for (int64_t k = curve.first(); k <= curve.last(); ++k) {
      if (!curve.Covers(k)) continue;
      ASSERT_DOUBLE_EQ(curve.GainOf(k), sorted.GainOf(k)) << i << " " << k;
      ASSERT_DOUBLE_EQ(curve.HotBytes(k), sorted.HotBytes(k)) << i << " " << k;
      if (k > curve.first()) {
        ASSERT_EQ(curve.Marginal(k), sorted.Marginal(k)) << i << " " << k;
      }
      for (size_t word = 0; word * 64 < layer.reads.size(); ++word) {
        ASSERT_EQ(HotWord(curve, k, word), HotWord(sorted, k, word)) << i << " " << k;
      }
    }
  }
  EXPECT_GT(covered, layers / 2);
}

}  // namespace
}  // namespace isotherm
