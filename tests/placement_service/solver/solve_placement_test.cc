#include "placement_service/solver/solve_placement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>

namespace isotherm {
namespace {

struct Instance {
  std::vector<LayerGeometry> layers;
  std::vector<std::vector<float>> frequency;
  int64_t budget = 0;

  SolveInput input() const {
    return {.layers = layers, .frequency = frequency, .bins = {{.budget_bytes = budget}}};
  }
};

Instance RandomInstance(std::mt19937& random, bool one_size) {
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  Instance instance;
  int64_t total = 0;
  const int64_t common_bytes = 1 + below(20);
  for (int l = 0, layers = 1 + below(3); l < layers; ++l) {
    const LayerGeometry layer{1 + below(5), one_size ? common_bytes : 1 + below(20)};
    instance.layers.push_back(layer);
    total += layer.num_neurons * layer.bundle_bytes;
    std::vector<float> frequency;
    // Few distinct values, so that ties are common.
    for (int64_t n = 0; n < layer.num_neurons; ++n) {
      frequency.push_back(static_cast<float>(below(8)) / 8);
    }
    instance.frequency.push_back(std::move(frequency));
  }
  instance.budget = below(static_cast<int>(total) + 3);
  return instance;
}

// What the cold side does not read because of the plan.
double SavedBytes(const Instance& instance, const PlacementPlan& plan) {
  double sum = 0;
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    for (size_t n = 0; n < instance.frequency[l].size(); ++n) {
      if ((plan.layers[l].hot[n / 64] >> (n % 64) & 1) == 0) continue;
      sum += instance.frequency[l][n] * static_cast<double>(instance.layers[l].bundle_bytes);
    }
  }
  return sum;
}

// The best over all subsets.
double BruteForce(const Instance& instance) {
  std::vector<std::pair<double, int64_t>> items;
  for (size_t l = 0; l < instance.layers.size(); ++l) {
    for (const float f : instance.frequency[l]) {
      const int64_t bytes = instance.layers[l].bundle_bytes;
      items.push_back({f * static_cast<double>(bytes), bytes});
    }
  }
  double best = 0;
  for (uint32_t subset = 0; subset < uint32_t{1} << items.size(); ++subset) {
    double sum = 0;
    int64_t bytes = 0;
    for (size_t i = 0; i < items.size(); ++i) {
      if (subset >> i & 1) {
        sum += items[i].first;
        bytes += items[i].second;
      }
    }
    if (bytes <= instance.budget) best = std::max(best, sum);
  }
  return best;
}

// Bits, counts and bytes agree and the budget holds.
void ExpectConsistent(const Instance& instance, const PlacementPlan& plan) {
  ASSERT_EQ(plan.layers.size(), instance.layers.size());
  int64_t used = 0;
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    int64_t bits = 0;
    for (const uint64_t word : plan.layers[l].hot) bits += std::popcount(word);
    EXPECT_EQ(bits, plan.layers[l].num_hot);
    EXPECT_EQ(plan.layers[l].num_neurons, instance.layers[l].num_neurons);
    const int64_t tail = instance.layers[l].num_neurons % 64;
    EXPECT_TRUE(tail == 0 || plan.layers[l].hot.back() >> tail == 0);
    used += bits * instance.layers[l].bundle_bytes;
  }
  EXPECT_EQ(used, plan.used_bytes);
  EXPECT_LE(used, instance.budget);
}

TEST(SolvePlacementTest, IsTheOptimumWhenBundlesHaveOneSize) {
  std::mt19937 random(1);
  for (int i = 0; i < 300; ++i) {
    const Instance instance = RandomInstance(random, /*one_size=*/true);
    const auto plan = SolvePlacement(instance.input());
    ASSERT_TRUE(plan.ok()) << plan.status();
    ExpectConsistent(instance, *plan);
    EXPECT_DOUBLE_EQ(SavedBytes(instance, *plan), BruteForce(instance));
  }
}

TEST(SolvePlacementTest, IsWithinOneNeuronOfTheOptimumWhenSizesDiffer) {
  std::mt19937 random(2);
  for (int i = 0; i < 300; ++i) {
    const Instance instance = RandomInstance(random, /*one_size=*/false);
    const auto plan = SolvePlacement(instance.input());
    ASSERT_TRUE(plan.ok()) << plan.status();
    ExpectConsistent(instance, *plan);
    double largest = 0;
    for (size_t l = 0; l < instance.layers.size(); ++l) {
      for (const float f : instance.frequency[l]) {
        largest = std::max(largest, f * static_cast<double>(instance.layers[l].bundle_bytes));
      }
    }
    const double best = BruteForce(instance);
    EXPECT_LE(SavedBytes(instance, *plan), best + 1e-9);
    EXPECT_GE(SavedBytes(instance, *plan), best - largest - 1e-9);
  }
}

TEST(SolvePlacementTest, LeavesNoRoomThatAColdNeuronFits) {
  std::mt19937 random(3);
  for (int i = 0; i < 300; ++i) {
    const Instance instance = RandomInstance(random, i % 2 == 0);
    const auto plan = SolvePlacement(instance.input());
    ASSERT_TRUE(plan.ok()) << plan.status();
    for (size_t l = 0; l < plan->layers.size(); ++l) {
      if (plan->layers[l].num_hot == plan->layers[l].num_neurons) continue;
      EXPECT_GT(plan->used_bytes + instance.layers[l].bundle_bytes, instance.budget);
    }
  }
}

TEST(SolvePlacementTest, PredictsTheShareOfActivationsThatAreHot) {
  const Instance instance{{{4, 10}, {2, 10}}, {{0.5f, 0.25f, 0.125f, 0.125f}, {0.75f, 0.25f}}, 20};
  const auto plan = SolvePlacement(instance.input());
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_DOUBLE_EQ(plan->layers[0].predicted_hit_share, 0.5);
  EXPECT_DOUBLE_EQ(plan->layers[1].predicted_hit_share, 0.75);
  EXPECT_DOUBLE_EQ(plan->objective, 1.25 / 2.0);
  EXPECT_EQ(plan->used_bytes, 20);
}

TEST(SolvePlacementTest, BreaksTiesByLayerThenId) {
  const Instance instance{
      {{70, 1}, {70, 1}}, {std::vector<float>(70, 0.5f), std::vector<float>(70, 0.5f)}, 72};
  const auto plan = SolvePlacement(instance.input());
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->layers[0].num_hot, 70);
  EXPECT_EQ(plan->layers[1].hot, (std::vector<uint64_t>{0b11, 0}));
}

TEST(SolvePlacementTest, SplitsEvenlyWithoutAProfile) {
  Instance instance{{{100, 8}, {100, 8}, {3, 8}}, {}, 8 * 24};
  const auto plan = SolvePlacement(instance.input());
  ASSERT_TRUE(plan.ok()) << plan.status();
  ExpectConsistent(instance, *plan);
  EXPECT_EQ(plan->layers[0].num_hot, 11);  // 3 + 10 + 10, one over
  EXPECT_EQ(plan->layers[1].num_hot, 10);
  EXPECT_EQ(plan->layers[2].num_hot, 3);
  EXPECT_EQ(plan->layers[0].hot[0], (uint64_t{1} << 11) - 1);
  EXPECT_EQ(plan->solver, "even");
  EXPECT_DOUBLE_EQ(plan->objective, 24.0 / 203);
}

TEST(SolvePlacementTest, BudgetOfZeroOrOfEverything) {
  Instance instance{{{5, 8}, {5, 8}}, {std::vector<float>(5, 0), std::vector<float>(5, 0.5f)}, 0};
  auto plan = SolvePlacement(instance.input());
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->used_bytes, 0);
  EXPECT_EQ(plan->layers[0].predicted_hit_share, 1.0);  // never fires
  instance.budget = std::numeric_limits<int64_t>::max();
  plan = SolvePlacement(instance.input());
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->used_bytes, 80);
  EXPECT_EQ(plan->objective, 1.0);
}

TEST(SolvePlacementTest, RefusesImpossibleInput) {
  const Instance good{{{2, 8}}, {{0.5f, 0.25f}}, 8};
  ASSERT_TRUE(SolvePlacement(good.input()).ok());
  const float bad_values[] = {std::numeric_limits<float>::quiet_NaN(),
                              std::numeric_limits<float>::infinity(), -0.5f};
  for (const float value : bad_values) {
    Instance bad = good;
    bad.frequency[0][1] = value;
    EXPECT_EQ(SolvePlacement(bad.input()).status().code(), absl::StatusCode::kInvalidArgument);
  }
  for (const LayerGeometry& layer : {LayerGeometry{0, 8}, LayerGeometry{-1, 8}, LayerGeometry{2, 0},
                                     LayerGeometry{int64_t{1} << 40, 8}, LayerGeometry{3, 8},
                                     LayerGeometry{2, 8, 1}, LayerGeometry{2, 8, -1}}) {
    Instance bad = good;
    bad.layers[0] = layer;
    EXPECT_EQ(SolvePlacement(bad.input()).status().code(), absl::StatusCode::kInvalidArgument);
  }
  Instance bad = good;
  bad.budget = -1;
  EXPECT_EQ(SolvePlacement(bad.input()).status().code(), absl::StatusCode::kInvalidArgument);
  bad = good;
  bad.layers.push_back({2, 8});
  EXPECT_EQ(SolvePlacement(bad.input()).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace isotherm
