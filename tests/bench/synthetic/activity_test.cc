#include "bench/synthetic/activity.h"

#include <algorithm>
#include <numeric>

#include "gtest/gtest.h"

namespace isotherm::bench {
namespace {

TEST(ActivityTest, ProbitInvertsTheNormalDistribution) {
  for (const double p : {1e-21, 1e-9, 0.001, 0.05, 0.3, 0.5, 0.7, 0.859, 0.9999}) {
    EXPECT_NEAR(NormalCdf(Probit(p)) / p, 1, 1e-9) << p;
  }
  EXPECT_NEAR(Probit(0.975), 1.959963984540054, 1e-12);
  EXPECT_NEAR(Probit(0.5), 0, 1e-12);
}

TEST(ActivityTest, MeanSquareOfReluIsTheIntegral) {
  for (const double t : {-3.0, -1.0, 0.0, 0.8}) {
    double sum = 0;
    constexpr double kStep = 1e-3;
    for (double x = -8; x < 8; x += kStep) {
      const double value = std::max(0.0, t + x);
      sum += value * value * std::exp(-x * x / 2) / std::sqrt(2 * 3.14159265358979) * kStep;
    }
    EXPECT_NEAR(MeanSquareOfRelu(t), sum, 1e-4) << t;
  }
}

TEST(ActivityTest, PresetsHaveTheDesignedShape) {
  for (const char* name : {"llama-7b", "llama-13b", "falcon-40b"}) {
    const SyntheticOptions o = *SyntheticPreset(name);
    ASSERT_TRUE(Validate(o).ok()) << Validate(o);
    double total = 0;
    std::vector<double> p;
    for (int64_t rank = 0; rank < o.ffn_dim; ++rank) p.push_back(DesignedActivity(o, rank));
    total = std::accumulate(p.begin(), p.end(), 0.0);
    EXPECT_NEAR(total / static_cast<double>(o.ffn_dim), o.mean_activity, 1e-4) << name;
    EXPECT_TRUE(std::is_sorted(p.rbegin(), p.rend())) << name;
    double sum = 0;
    size_t hot = 0;
    while (sum < 0.8 * total) sum += p[hot++];
    // "43 % of neurons make 80 % of activations"
    if (o.family == SyntheticFamily::kLlama) {
      EXPECT_NEAR(static_cast<double>(hot) / static_cast<double>(o.ffn_dim), 0.43, 0.005);
    }
  }
}

TEST(ActivityTest, RanksArePermutationsOfWhichDriftMovesItsShare) {
  SyntheticOptions o;
  o.ffn_dim = 1000;
  o.drift = 0.2;
  for (int64_t layer = 0; layer < 3; ++layer) {
    std::vector<int32_t> first = NeuronRanks(o, layer, 0);
    std::vector<int32_t> second = NeuronRanks(o, layer, 1);
    int moved = 0;
    for (size_t n = 0; n < first.size(); ++n) moved += first[n] != second[n] ? 1 : 0;
    // 200 are permuted; about one of them stays where it was.
    EXPECT_LE(moved, 200);
    EXPECT_GE(moved, 193);
    EXPECT_NE(first, NeuronRanks(o, layer + 1, 0));
    SyntheticOptions other = o;
    other.drift_seed = 3;
    EXPECT_EQ(first, NeuronRanks(other, layer, 0));
    EXPECT_NE(second, NeuronRanks(other, layer, 1));
    for (std::vector<int32_t>* ranks : {&first, &second}) {
      std::sort(ranks->begin(), ranks->end());
      for (size_t n = 0; n < ranks->size(); ++n) ASSERT_EQ((*ranks)[n], static_cast<int32_t>(n));
    }
  }
}

}  // namespace
}  // namespace isotherm::bench
