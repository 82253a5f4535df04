// The solver with times: balance points, whole layers, several gpu_workers and NUMA nodes, against
// every subset of small instances and a full sort of large ones.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "placement_service/solver/solve_placement.h"

namespace isotherm {
namespace {

struct CostsInstance {
  std::vector<LayerGeometry> layers;
  std::vector<std::vector<float>> frequency;
  std::vector<std::vector<float>> reads;
  std::vector<SolveBin> bins;
  std::vector<SolveNode> nodes;

  SolveInput input() const { return {layers, frequency, bins, reads, nodes}; }
  int64_t num_neurons() const {
    int64_t sum = 0;
    for (const LayerGeometry& layer : layers) sum += layer.num_neurons;
    return sum;
  }
};

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  int Below(int n) { return static_cast<int>(engine_() % static_cast<unsigned>(n)); }
  double Unit() { return static_cast<double>(engine_()) / 4294967296.0; }

 private:
  std::mt19937 engine_;
};

CostsInstance RandomInstance(Random& random, int max_layers, int max_neurons, int num_bins) {
  CostsInstance out;
  const int64_t bytes = 1 + random.Below(20);
  std::vector<int64_t> total(static_cast<size_t>(num_bins), 0);
  for (int l = 0, layers = 1 + random.Below(max_layers); l < layers; ++l) {
    const LayerGeometry layer{1 + random.Below(max_neurons), bytes, random.Below(num_bins)};
    total[static_cast<size_t>(layer.bin)] += layer.num_neurons * bytes;
    out.layers.push_back(layer);
    std::vector<float> frequency, reads;
    for (int64_t n = 0; n < layer.num_neurons; ++n) {
      frequency.push_back(static_cast<float>(random.Unit()));
      reads.push_back(frequency.back() * static_cast<float>(bytes));
    }
    out.frequency.push_back(std::move(frequency));
    out.reads.push_back(std::move(reads));
  }
  for (const int64_t all : total) {
    out.bins.push_back({.budget_bytes = random.Below(static_cast<int>(all) + 2)});
  }
  return out;
}

std::vector<LayerPlacement> PlacementOf(const CostsInstance& instance, uint32_t subset) {
  std::vector<LayerPlacement> out;
  for (const LayerGeometry& layer : instance.layers) {
    const uint64_t bits = subset & ((uint64_t{1} << layer.num_neurons) - 1);
    subset >>= layer.num_neurons;
    out.push_back(
        {.hot = {bits}, .num_neurons = layer.num_neurons, .num_hot = std::popcount(bits)});
  }
  return out;
}

bool KeepsBudgets(const CostsInstance& instance, const std::vector<LayerPlacement>& placement) {
  std::vector<int64_t> used(instance.bins.size(), 0);
  for (size_t l = 0; l < placement.size(); ++l) {
    used[static_cast<size_t>(instance.layers[l].bin)] +=
        placement[l].num_hot * instance.layers[l].bundle_bytes;
  }
  for (size_t b = 0; b < used.size(); ++b) {
    if (used[b] > instance.bins[b].budget_bytes) return false;
  }
  return true;
}

double BruteForceCosts(const CostsInstance& instance) {
  double best = std::numeric_limits<double>::infinity();
  for (uint32_t subset = 0; subset < uint32_t{1} << instance.num_neurons(); ++subset) {
    const std::vector<LayerPlacement> placement = PlacementOf(instance, subset);
    if (KeepsBudgets(instance, placement)) {
      best = std::min(best, PredictStepNs(instance.input(), placement));
    }
  }
  return best;
}

// What one neuron of each layer can be worth at most: the solver's promise.
double OneNeuronEach(const CostsInstance& instance) {
  double sum = 0;
  for (size_t l = 0; l < instance.layers.size(); ++l) {
    const SolveBin& bin = instance.bins[static_cast<size_t>(instance.layers[l].bin)];
    double factor = 1;
    for (const SolveNode& node : instance.nodes) factor = std::max(factor, node.cost_factor);
    const std::vector<float>& reads = instance.reads[l];
    sum += *std::max_element(reads.begin(), reads.end()) *
           std::max(bin.cold_per_byte * factor, bin.hot_per_byte);
  }
  return sum;
}

PlacementPlan Solve(const CostsInstance& instance, SolveHints* hints = nullptr) {
  absl::StatusOr<PlacementPlan> plan = SolvePlacement(instance.input(), hints);
  EXPECT_TRUE(plan.ok()) << plan.status();
  if (!plan.ok()) return {};
  EXPECT_TRUE(KeepsBudgets(instance, plan->layers));
  EXPECT_NEAR(PredictStepNs(instance.input(), plan->layers), plan->predicted_ns,
              1e-5 * (1 + plan->predicted_ns));
  return *std::move(plan);
}

TEST(SolveCostsTest, StopsWhereTheHotSideBecomesTheSlowerOne) {
  Random random(1);
  for (int i = 0; i < 400; ++i) {
    CostsInstance instance = RandomInstance(random, 3, 4, 1);
    instance.bins[0].cold_per_byte = 0.5 + random.Unit();
    instance.bins[0].hot_per_byte = random.Unit() * (i % 2 == 0 ? 0.2 : 2);
    instance.bins[0].hot_fixed = random.Below(2) * 3 * random.Unit();
    instance.bins[0].cold_fixed = instance.bins[0].hot_fixed;  // no layer gains by being whole
    const PlacementPlan plan = Solve(instance);
    const double best = BruteForceCosts(instance);
    EXPECT_LE(plan.bound_ns, best + 1e-6) << i;
    EXPECT_LE(plan.predicted_ns, best + OneNeuronEach(instance) + 1e-6) << i;
  }
}

TEST(SolveCostsTest, KeepsLayersWholeWhereThatSavesTheHandOff) {
  Random random(2);
  int optima = 0;
  for (int i = 0; i < 400; ++i) {
    CostsInstance instance = RandomInstance(random, 4, 3, 1);
    instance.bins[0].cold_fixed = 10 * random.Unit();
    instance.bins[0].hot_per_byte = 0.1 * random.Unit();
    const PlacementPlan plan = Solve(instance);
    const double best = BruteForceCosts(instance);
    EXPECT_LE(plan.bound_ns, best + 1e-6) << i;
    // Which layers to keep whole is a knapsack: the relaxation decides, at most one layer off.
    EXPECT_LE(plan.predicted_ns,
              best + OneNeuronEach(instance) + instance.bins[0].cold_fixed + 1e-6)
        << i;
    if (plan.predicted_ns < best + 1e-6) ++optima;
  }
  EXPECT_GT(optima, 300);
}

TEST(SolveCostsTest, EveryBinKeepsItsOwnBudget) {
  Random random(3);
  for (int i = 0; i < 300; ++i) {
    const CostsInstance instance = RandomInstance(random, 4, 3, 3);
    const PlacementPlan plan = Solve(instance);
    EXPECT_NEAR(plan.predicted_ns, BruteForceCosts(instance), 1e-5);
    EXPECT_NEAR(plan.bound_ns, plan.predicted_ns, OneNeuronEach(instance) + 1e-6);
  }
}

TEST(SolveCostsTest, NodesAreKeptInBalance) {
  Random random(4);
  for (int i = 0; i < 300; ++i) {
    CostsInstance instance = RandomInstance(random, 2, 6, 1);
    instance.nodes = {{0.5, 1}, {1, 1 + random.Below(2) * random.Unit()}};
    const PlacementPlan plan = Solve(instance);
    const double best = BruteForceCosts(instance);
    EXPECT_LE(plan.bound_ns, best + 1e-5) << i;
    EXPECT_LE(plan.predicted_ns, best + OneNeuronEach(instance) + 1e-6) << i;
  }
  // One node alone is the slow one: its neurons go first, although the other's fire more often.
  const CostsInstance skewed{.layers = {{4, 1}},
                             .frequency = {{0.9f, 0.9f, 0.5f, 0.5f}},
                             .reads = {{0.9f, 0.9f, 0.5f, 0.5f}},
                             .bins = {{.budget_bytes = 2}},
                             .nodes = {{0.5, 1}, {1, 10}}};
  EXPECT_EQ(Solve(skewed).layers[0].hot[0], 0b1100u);
}

TEST(SolveCostsTest, ANeuronThatDoesNotPayItsMoveStaysCold) {
  const CostsInstance instance{.layers = {{4, 1}},
                               .frequency = {{0.4f, 0.3f, 0.2f, 0.1f}},
                               .reads = {{0.4f, -0.1f, 0.2f, -0.3f}},
                               .bins = {{.budget_bytes = 4}},
                               .nodes = {}};
  EXPECT_EQ(Solve(instance).layers[0].hot[0], 0b0101u);
}

// Large layers are not sorted whole; the result is the same as if they were, whatever the hints.
class WindowTest : public testing::TestWithParam<std::vector<SolveNode>> {};
INSTANTIATE_TEST_SUITE_P(Nodes, WindowTest,
                         testing::Values(std::vector<SolveNode>{},
                                         std::vector<SolveNode>{{0.5, 1}, {1, 1.1}},
                                         std::vector<SolveNode>{{0.3, 1}, {0.4, 2}, {1, 0.7}},
                                         // The first one is never the slowest.
                                         std::vector<SolveNode>{{0.1, 0.1}, {1, 10}}));

TEST_P(WindowTest, WindowsAndHintsChangeNothing) {
  std::mt19937 engine(5);
  std::exponential_distribution<float> gap(1.0f);
  CostsInstance instance;
  instance.nodes = GetParam();
  double all_reads = 0;
  for (int l = 0; l < 6; ++l) {
    instance.layers.push_back({5'000 + 13 * l, 64});
    std::vector<float> reads;
    for (int64_t n = 0; n < instance.layers.back().num_neurons; ++n) {
      // Layers differ tenfold, values repeat.
      reads.push_back(std::round(1000 * gap(engine)) * static_cast<float>(1 + 2 * l) / 50);
      all_reads += reads.back();
    }
    instance.frequency.push_back(reads);
    instance.reads.push_back(std::move(reads));
  }
  const size_t thresholds = instance.layers.size() * std::max<size_t>(1, instance.nodes.size());
  struct Costs {
    double cold_fixed, hot_per_byte;
  };
  for (const Costs costs : {Costs{0, 0}, Costs{2000, 0}, Costs{0, 0.8}, Costs{3000, 0.5}}) {
    for (const double share : {0.0, 0.03, 0.2, 0.5, 0.9, 1.0}) {
      instance.bins = {{.budget_bytes = static_cast<int64_t>(
                            share * 64 * static_cast<double>(instance.num_neurons())),
                        .cold_fixed = costs.cold_fixed,
                        .hot_per_byte = costs.hot_per_byte}};
      const PlacementPlan plan = Solve(instance);
      // Sorts every layer whole.
      SolveHints zeros{std::vector<float>(thresholds, 0)};
      SolveHints exact = zeros;
      const PlacementPlan sorted = Solve(instance, &exact);
      SolveHints far{std::vector<float>(thresholds, 1e-3f)};
      SolveHints high{std::vector<float>(thresholds, 1e6f)};
      for (SolveHints* hints : {&exact, &zeros, &far, &high}) {
        const PlacementPlan hinted = Solve(instance, hints);
        EXPECT_EQ(PlanChecksum(hinted), PlanChecksum(sorted)) << share << " " << costs.cold_fixed;
        // What lies above a window is summed in another order.
        EXPECT_NEAR(hinted.bound_ns, sorted.bound_ns, 1e-6 * all_reads);
      }
      EXPECT_EQ(PlanChecksum(plan), PlanChecksum(sorted)) << share << " " << costs.cold_fixed;
      EXPECT_LE(plan.bound_ns, plan.predicted_ns);
      // The gap is a neuron a layer at most, and a layer's hand-off.
      EXPECT_LE(plan.predicted_ns - plan.bound_ns, OneNeuronEach(instance) + costs.cold_fixed + 1);
    }
  }
}

TEST(SolveCostsTest, OneNodeCostsWhatItSays) {
  Random random(7);
  for (int i = 0; i < 100; ++i) {
    CostsInstance instance = RandomInstance(random, 2, 6, 1);
    instance.bins[0].hot_per_byte = random.Unit();
    instance.nodes = {{1, 0.5 + 2 * random.Unit()}};
    const PlacementPlan plan = Solve(instance);
    const double best = BruteForceCosts(instance);
    EXPECT_LE(plan.bound_ns, best + 1e-5) << i;
    EXPECT_LE(plan.predicted_ns, best + OneNeuronEach(instance) + 1e-6) << i;
  }
}

TEST(SolveCostsTest, PredictsTimeAndShareOfAnyPlan) {
  const CostsInstance instance{.layers = {{2, 8}, {2, 8}},
                               .frequency = {{0.5f, 0.25f}, {0.75f, 0}},
                               .reads = {{4, 2}, {6, 0}},
                               .bins = {{.budget_bytes = 100,
                                         .cold_fixed = 5,
                                         .cold_per_byte = 2,
                                         .hot_fixed = 1,
                                         .hot_per_byte = 0.5}},
                               .nodes = {}};
  std::vector<LayerPlacement> layers = {{{0b01}, 2, 1}, {{0b11}, 2, 2}};
  // max(5 + 2 * 2, 1 + 0.5 * 4) and, whole, 1 + 0.5 * 6.
  EXPECT_DOUBLE_EQ(PredictStepNs(instance.input(), layers), 9 + 4);
  EXPECT_DOUBLE_EQ(PredictHitShare(instance.frequency, layers), 1.25 / 1.5);
  EXPECT_DOUBLE_EQ(layers[0].predicted_hit_share, 0.5 / 0.75);
  EXPECT_DOUBLE_EQ(layers[1].predicted_hit_share, 1);
}

TEST(SolveCostsTest, RefusesImpossibleCosts) {
  Random random(6);
  const CostsInstance good = RandomInstance(random, 2, 3, 1);
  ASSERT_TRUE(SolvePlacement(good.input()).ok());
  const auto refuses = [](const CostsInstance& bad) {
    return SolvePlacement(bad.input()).status().code() == absl::StatusCode::kInvalidArgument;
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (double SolveBin::*cost : {&SolveBin::cold_fixed, &SolveBin::cold_per_byte,
                                 &SolveBin::hot_fixed, &SolveBin::hot_per_byte}) {
    for (const double value : {nan, -1.0, std::numeric_limits<double>::infinity()}) {
      CostsInstance bad = good;
      bad.bins[0].*cost = value;
      EXPECT_TRUE(refuses(bad)) << value;
    }
  }
  for (const std::vector<SolveNode>& nodes : {std::vector<SolveNode>{{0.5, 1}},
                                              {{0.5, 1}, {0.5, 1}, {1, 1}},
                                              {{0.5, 0}, {1, 1}},
                                              {{nan, 1}, {1, 1}},
                                              {{0.5, nan}, {1, 1}}}) {
    CostsInstance bad = good;
    bad.nodes = nodes;
    EXPECT_TRUE(refuses(bad)) << nodes.size();
  }
  CostsInstance bad = good;
  bad.reads[0][0] = static_cast<float>(nan);
  EXPECT_TRUE(refuses(bad));
  // Of a layer that is large enough for a window, under a budget for all of it.
  for (const std::vector<SolveNode>& nodes :
       {std::vector<SolveNode>{}, std::vector<SolveNode>{{0.5, 1}, {1, 1}}}) {
    bad = {.layers = {{5'000, 1}},
           .frequency = {std::vector<float>(5'000, 0.5f)},
           .reads = {std::vector<float>(5'000, 0.5f)},
           .bins = {{.budget_bytes = 5'000}},
           .nodes = nodes};
    ASSERT_TRUE(SolvePlacement(bad.input()).ok());
    bad.reads[0][0] = static_cast<float>(nan);
    EXPECT_TRUE(refuses(bad)) << nodes.size();
  }
  bad = good;
  bad.reads[0].push_back(1);
  EXPECT_TRUE(refuses(bad));
}

}  // namespace
}  // namespace isotherm
