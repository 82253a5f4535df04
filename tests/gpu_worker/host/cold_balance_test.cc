#include "gpu_worker/host/cold_balance.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <random>
#include <vector>

namespace isotherm::gpu {
namespace {

constexpr int64_t kLayerNeurons = 300;  // no multiple of 64
constexpr int64_t kWords = 5;

// Two machines' worth of time: each side computes its part, the far one after a hand-off.
struct Machine {
  float own_us = 0;       // the near side's own neurons
  float all_cold_us = 0;  // all cold ones, on either side
  float handoff_us = 0;

  ColdBalance::Outcome Run(float share) const {
    const float own = own_us + share * all_cold_us;
    const float cold = (1 - share) * all_cold_us;
    return {.own_us = own, .wait_us = std::max(0.0f, handoff_us + cold - own), .cold_us = cold};
  }
  float EndUs(float share) const {
    const ColdBalance::Outcome outcome = Run(share);
    return outcome.own_us + outcome.wait_us;
  }
};

float ShareAfter(const Machine& machine, int tokens, ColdBalance& balance) {
  for (int i = 0; i < tokens; ++i) balance.Learn(0, 1, machine.Run(balance.share(0, 1)));
  return balance.share(0, 1);
}

TEST(ColdBalanceTest, BothSidesEndTogetherOnceItHasLearnt) {
  for (const Machine& machine : {Machine{20, 60, 16}, Machine{0, 80, 4}, Machine{35, 60, 30}}) {
    ColdBalance balance(1, kLayerNeurons);
    const float share = ShareAfter(machine, 200, balance);
    float best = machine.EndUs(0);
    for (float s = 0; s <= 0.9f; s += 0.01f) best = std::min(best, machine.EndUs(s));
    EXPECT_LT(machine.EndUs(share), best * 1.03f) << machine.own_us;
  }
}

TEST(ColdBalanceTest, TakesNothingWhenItsOwnNeuronsAreTheLongerSide) {
  ColdBalance balance(1, kLayerNeurons);
  EXPECT_EQ(ShareAfter({.own_us = 100, .all_cold_us = 30, .handoff_us = 10}, 200, balance), 0);
}

TEST(ColdBalanceTest, FollowsAMachineThatChanges) {
  ColdBalance balance(1, kLayerNeurons);
  const Machine slow_peer{20, 60, 60}, fast_peer{40, 60, 2};
  const float before = ShareAfter(slow_peer, 200, balance);
  const float after = ShareAfter(fast_peer, 400, balance);
  EXPECT_GT(before, after + 0.2f);
  EXPECT_LT(fast_peer.EndUs(after), 1.05f * fast_peer.EndUs(0.18f));
}

TEST(ColdBalanceTest, NeitherOneOutlierNorManyUpsetIt) {
  ColdBalance balance(1, kLayerNeurons);
  const Machine machine{20, 60, 16};
  const float settled = ShareAfter(machine, 200, balance);
  balance.Learn(0, 1, {.own_us = 40, .wait_us = 3000, .cold_us = 3000});
  EXPECT_LT(balance.share(0, 1), settled + 0.06f);
  for (int i = 0; i < 1000; ++i) balance.Learn(0, 1, {.own_us = 1, .wait_us = 5000, .cold_us = 1});
  EXPECT_LE(balance.share(0, 1), 0.9f);
  EXPECT_NEAR(ShareAfter(machine, 400, balance), settled, 0.03f);
}

TEST(ColdBalanceTest, LayersAndSizesOfBatchLearnApart) {
  ColdBalance balance(2, kLayerNeurons);
  for (int i = 0; i < 50; ++i) balance.Learn(1, 8, {.own_us = 10, .wait_us = 50, .cold_us = 40});
  EXPECT_GT(balance.share(1, 8), 0.1f);
  EXPECT_EQ(balance.share(0, 8), 0);
  EXPECT_EQ(balance.share(1, 1), 0);
  EXPECT_EQ(balance.share(1, 64), 0);
}

TEST(ColdBalanceTest, TheCutLeavesItsShareOfTheActiveColdNeuronsAbove) {
  std::mt19937_64 random(3);
  for (const int64_t rows : {1, 3}) {
    ColdBalance balance(1, kLayerNeurons);
    std::vector<uint64_t> active(static_cast<size_t>(rows * kWords)), cold(kWords);
    for (uint64_t& word : active) word = random() & random();
    for (uint64_t& word : cold) word = random() | random();
    for (int64_t row = 0; row < rows; ++row)
      active[static_cast<size_t>(row * kWords + kWords - 1)] &= (uint64_t{1} << 44) - 1;
    std::vector<int64_t> ids;
    for (int64_t id = 0; id < kLayerNeurons; ++id) {
      bool is_active = false;
      for (int64_t row = 0; row < rows; ++row)
        is_active |= (active[static_cast<size_t>(row * kWords + id / 64)] >> (id % 64) & 1) != 0;
      if (is_active && (cold[static_cast<size_t>(id / 64)] >> (id % 64) & 1) != 0)
        ids.push_back(id);
    }
    EXPECT_EQ(balance.Cut(0, active.data(), rows, cold.data()), kLayerNeurons);
    for (int i = 0; i < 100; ++i) {
      balance.Learn(0, rows, {.own_us = 1, .wait_us = 90, .cold_us = 90});
      const int32_t cut = balance.Cut(0, active.data(), rows, cold.data());
      const auto above =
          std::count_if(ids.begin(), ids.end(), [cut](int64_t id) { return id >= cut; });
      const float wanted = balance.share(0, rows) * static_cast<float>(ids.size());
      EXPECT_NEAR(static_cast<float>(above), wanted, 0.5f + 1e-3f);
    }
  }
}

TEST(ColdBalanceTest, WithoutAnActiveColdNeuronThereIsNothingToCut) {
  ColdBalance balance(1, kLayerNeurons);
  for (int i = 0; i < 100; ++i) balance.Learn(0, 1, {.own_us = 1, .wait_us = 90, .cold_us = 90});
  const std::vector<uint64_t> none(kWords), all(kWords, ~uint64_t{0});
  EXPECT_EQ(balance.Cut(0, none.data(), 1, all.data()), kLayerNeurons);
  EXPECT_EQ(balance.Cut(0, all.data(), 1, none.data()), kLayerNeurons);
}

TEST(ColdBalanceTest, AHandfulIsNotWorthAHandOff) {
  ColdBalance balance(1, kLayerNeurons);
  for (int i = 0; i < 100; ++i) balance.Learn(0, 1, {.own_us = 1, .wait_us = 90, .cold_us = 90});
  ASSERT_GT(balance.share(0, 1), 0.8f);
  const std::vector<uint64_t> all(kWords, ~uint64_t{0});
  EXPECT_EQ(balance.Cut(0, std::vector<uint64_t>{0, 6, 0, 0, 0}.data(), 1, all.data()), 0);
}

}  // namespace
}  // namespace isotherm::gpu
