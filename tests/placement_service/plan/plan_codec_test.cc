#include "placement_service/plan/plan_codec.h"

#include <gtest/gtest.h>

#include <random>

#include "common/base/exit_code.h"

namespace isotherm {
namespace {

PlacementPlan Plan() {
  PlacementPlan plan;
  plan.model_digest = "digest";
  plan.budget_bytes = 100;
  plan.layers = {{.hot = {5, 1}, .num_neurons = 70, .num_hot = 3, .predicted_hit_share = 0.5},
                 {.hot = {0}, .num_neurons = 3}};
  return plan;
}

TEST(PlanCodecTest, ReadsBackWhatItWrote) {
  const auto layers = DecodeLayers(EncodeLayers(Plan()), /*bitmaps=*/true);
  ASSERT_TRUE(layers.ok()) << layers.status();
  EXPECT_EQ((*layers)[0].hot, (std::vector<uint64_t>{5, 1}));
  EXPECT_EQ((*layers)[1].num_neurons, 3);
  EXPECT_TRUE(DecodeLayers(EncodeLayers(Plan()), false)->front().hot.empty());
}

TEST(PlanCodecTest, RefusesEveryTruncationAndEveryFlippedWordOfBits) {
  const std::string good = EncodeLayers(Plan());
  for (size_t size = 0; size < good.size(); ++size) {
    const auto layers = DecodeLayers(absl::string_view(good).substr(0, size), true);
    EXPECT_EQ(ExitCodeOf(layers.status()), ExitCode::kBadData);
  }
  EXPECT_FALSE(DecodeLayers(good + "x", true).ok());
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    std::string bad = good;
    const size_t at = random() % bad.size();
    // The predicted share is not part of what the checksum guards: layout bytes 24..31 of a layer.
    if ((at >= 24 && at < 32) || (at >= 64 && at < 72)) continue;
    bad[at] = static_cast<char>(bad[at] ^ (1 << (random() % 8)));
    EXPECT_FALSE(DecodeLayers(bad, true).ok()) << at;
  }
}

TEST(PlanCodecTest, EtagNamesContentsNotEpochs) {
  PlacementPlan a = Plan();
  PlacementPlan b = Plan();
  b.epoch = 7;
  b.cause = PlacementCause::kRollback;
  EXPECT_EQ(PlanEtag(a), PlanEtag(b));
  b.layers[0].hot[0] = 6;
  EXPECT_NE(PlanEtag(a), PlanEtag(b));
  a.budget_bytes = 99;
  EXPECT_NE(PlanEtag(a), PlanEtag(Plan()));
}

TEST(PlanCodecTest, CountsNeuronsThatChangeSides) {
  PlacementPlan after = Plan();
  EXPECT_EQ(MovedNeurons(PlacementPlan(), after), 3);
  EXPECT_EQ(MovedNeurons(Plan(), after), 0);
  after.layers[0].hot[0] = 6;
  EXPECT_EQ(MovedNeurons(Plan(), after), 2);
}

}  // namespace
}  // namespace isotherm
