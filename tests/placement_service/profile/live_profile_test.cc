#include "placement_service/profile/live_profile.h"

#include <gtest/gtest.h>

#include <cmath>

#include "placement_service/profile/expected_reads.h"

namespace isotherm {
namespace {

TelemetryReport Report(uint64_t tokens, std::vector<uint32_t> predicted,
                       std::vector<uint32_t> fired, uint64_t exact = 0) {
  TelemetryReport report{.num_neurons = static_cast<int64_t>(predicted.size())};
  LayerTelemetry layer{.predicted = std::move(predicted), .fired = std::move(fired)};
  layer.counts.tokens = tokens;
  layer.counts.exact_tokens = exact;
  report.layers.push_back(std::move(layer));
  return report;
}

TEST(LiveProfileTest, AddsUpSharesOfTokens) {
  LiveProfile profile(1, 3, {.half_life_tokens = 1e9});
  EXPECT_EQ(profile.tokens(), 0);
  profile.Add(Report(10, {10, 5, 0}, {4, 5, 0}), true);
  profile.Add(Report(10, {0, 5, 1}, {0, 0, 1}), true);
  // The cpu_worker adds its firings, not the tokens again.
  profile.Add(Report(20, {}, {6, 0, 0}), false);
  const LiveProfile::Layer layer = profile.Get(0);
  EXPECT_NEAR(layer.tokens, 20, 1e-6);
  EXPECT_NEAR(layer.predicted[0], 0.5, 1e-6);
  EXPECT_NEAR(layer.predicted[1], 0.5, 1e-6);
  EXPECT_NEAR(layer.predicted[2], 0.05, 1e-6);
  EXPECT_NEAR(layer.fired[0], 0.5, 1e-6);
  EXPECT_NEAR(layer.fired[1], 0.25, 1e-6);
}

TEST(LiveProfileTest, ExactRowsCountForFiringsOnly) {
  LiveProfile profile(1, 1, {.half_life_tokens = 1e9});
  profile.Add(Report(10, {8}, {6}, 30), true);
  const LiveProfile::Layer layer = profile.Get(0);
  EXPECT_NEAR(layer.predicted[0], 0.8, 1e-6);
  EXPECT_NEAR(layer.fired[0], 6.0 / 40, 1e-6);
}

TEST(LiveProfileTest, OldTokensLoseHalfTheirWorthInAHalfLife) {
  LiveProfile profile(1, 1, {.half_life_tokens = 100});
  for (int i = 0; i < 50; ++i) profile.Add(Report(100, {100}, {100}), true);
  // A long past converges to half_life / ln 2 tokens.
  EXPECT_NEAR(profile.tokens(), 100 / std::log(2.0), 1e-3);
  for (int i = 0; i < 100; ++i) profile.Add(Report(1, {0}, {0}), true);
  EXPECT_NEAR(profile.Get(0).predicted[0], 0.5, 1e-6);
  profile.Add(Report(100, {0}, {0}), true);
  EXPECT_NEAR(profile.Get(0).predicted[0], 0.25, 1e-6);
}

TEST(LiveProfileTest, ALongIntervalIsWorthNoMoreThanItsEnd) {
  LiveProfile profile(1, 1, {.half_life_tokens = 100});
  profile.Start("chat", std::vector<std::vector<float>>{{1.0f}}, {}, 1000);
  profile.Add(Report(uint64_t{1} << 39, {0}, {0}), true);  // telemetry was away for days
  EXPECT_NEAR(profile.tokens(), 100 / std::log(2.0), 1e-3);
  EXPECT_EQ(profile.Get(0).predicted[0], 0);
  EXPECT_TRUE(std::isfinite(profile.Get(0).fired[0]));
}

TEST(LiveProfileTest, TheDivisionOfLargeCountsChangesNothing) {
  LiveProfile often(1, 2, {.half_life_tokens = 10}), once(1, 2, {.half_life_tokens = 10});
  for (int i = 0; i < 2'000; ++i) often.Add(Report(1, {1, 0}, {1, 0}), true);
  for (int i = 0; i < 10; ++i) often.Add(Report(1, {0, 1}, {0, 0}), true);
  for (int i = 0; i < 200; ++i) once.Add(Report(1, {1, 0}, {1, 0}), true);
  for (int i = 0; i < 10; ++i) once.Add(Report(1, {0, 1}, {0, 0}), true);
  EXPECT_NEAR(often.Get(0).predicted[0], once.Get(0).predicted[0], 1e-5);
  EXPECT_NEAR(often.Get(0).predicted[1], once.Get(0).predicted[1], 1e-5);
  EXPECT_NEAR(often.tokens(), once.tokens(), 1e-4);
}

TEST(LiveProfileTest, APriorIsOutvotedByWhatComes) {
  LiveProfile profile(1, 2, {.half_life_tokens = 1'000});
  profile.Start("chat", std::vector<std::vector<float>>{{0.9f, 0.1f}}, {}, 200);
  EXPECT_EQ(profile.name(), "chat");
  EXPECT_NEAR(profile.tokens(), 200, 1e-6);
  EXPECT_NEAR(profile.Get(0).fired[0], 0.9, 1e-6);
  for (int i = 0; i < 60; ++i) profile.Add(Report(10, {1, 9}, {1, 9}), true);
  // 200 tokens, worth 2^-0.6 of that by now, against 600.
  EXPECT_NEAR(profile.Get(0).predicted[0], 0.27, 0.01);
  profile.Forget(0.01);
  EXPECT_NEAR(profile.tokens(), 6.2, 0.3);
  profile.Add(Report(100, {0, 100}, {0, 0}), true);
  EXPECT_LT(profile.Get(0).predicted[0], 0.03);
  profile.Start("even", {}, {}, 500);
  EXPECT_EQ(profile.tokens(), 0);
  EXPECT_EQ(profile.Get(0).predicted[1], 0);
}

TEST(LiveProfileTest, ARestoredProfileGoesOnWhereItWas) {
  LiveProfile profile(1, 2, {.half_life_tokens = 50});
  profile.Add(Report(40, {30, 7}, {20, 1}), true);
  LiveProfile other(1, 2, {.half_life_tokens = 50});
  other.Restore(0, profile.Get(0));
  for (LiveProfile* each : {&profile, &other}) each->Add(Report(10, {1, 9}, {1, 2}), true);
  EXPECT_NEAR(other.tokens(), profile.tokens(), 1e-4);
  for (size_t n = 0; n < 2; ++n) {
    EXPECT_NEAR(other.Get(0).predicted[n], profile.Get(0).predicted[n], 1e-5);
    EXPECT_NEAR(other.Get(0).fired[n], profile.Get(0).fired[n], 1e-5);
  }
}

TEST(ExpectedReadsTest, ABatchReadsANeuronOnce) {
  const LiveProfile::Layer layer{.tokens = 1e6,
                                 .fired_tokens = 1e6,
                                 .predicted = {0, 0.1f, 0.5f, 1},
                                 .fired = {0, 0.05f, 0.5f, 0.25f}};
  for (const double rows : {1.0, 2.5, 8.0}) {
    std::vector<float> reads, error;
    ExpectedReads(layer, {.first_row_bytes = 10, .rest_bytes = 20, .rows_per_step = rows}, &reads,
                  &error);
    for (size_t n = 0; n < 4; ++n) {
      const double p = layer.predicted[n], f = layer.fired[n];
      EXPECT_NEAR(reads[n], 10 * (1 - std::pow(1 - p, rows)) + 20 * (1 - std::pow(1 - f, rows)),
                  1e-3)
          << n << " " << rows;
    }
  }
}

TEST(ExpectedReadsTest, TheErrorShrinksWithTheSample) {
  LiveProfile::Layer layer{.predicted = {0, 0.2f, 1}, .fired = {0, 0.2f, 1}};
  std::vector<float> reads, few, many;
  layer.tokens = layer.fired_tokens = 100;
  ExpectedReads(layer, {.first_row_bytes = 1}, &reads, &few);
  EXPECT_NEAR(few[1], std::sqrt(0.206 * 0.794 / 102), 1e-3);
  EXPECT_GT(few[0], 0.005);  // a hundred tokens do not prove that a neuron never fires
  EXPECT_GT(few[2], 0.005);
  layer.tokens = layer.fired_tokens = 10'000;
  ExpectedReads(layer, {.first_row_bytes = 1}, &reads, &many);
  EXPECT_NEAR(many[1], few[1] / 10, 3e-4);
}

}  // namespace
}  // namespace isotherm
