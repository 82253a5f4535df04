#include "cli/bench/bench_runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/cli/fakes/fake_inference_client.h"

namespace isotherm::cli {
namespace {

class CountingSource final : public BenchSource {
 public:
  CountingSource(std::string name, std::vector<std::string>& order)
      : name_(std::move(name)), order_(order) {}
  std::string name() const override { return name_; }
  bool Supports(const BenchCase& bench) const override { return bench.concurrency < 4; }
  absl::StatusOr<BenchSample> Run(const BenchCase&) override {
    order_.push_back(name_);
    ++runs_;
    return BenchSample{.tokens_per_second = static_cast<double>(runs_)};
  }

 private:
  std::string name_;
  std::vector<std::string>& order_;
  int runs_ = 0;
};

TEST(BenchRunnerTest, InterleavesSourcesAndLeavesOutTheFirstRun) {
  std::vector<std::string> order;
  std::vector<std::unique_ptr<BenchSource>> sources;
  sources.push_back(std::make_unique<CountingSource>("a", order));
  sources.push_back(std::make_unique<CountingSource>("b", order));
  const auto rows = RunBench({.concurrency = {1, 4}, .repeats = 3}, sources,
                             [](int64_t, int64_t) { return true; });
  ASSERT_TRUE(rows.ok());
  EXPECT_THAT(order, ::testing::ElementsAre("a", "b", "a", "b", "a", "b", "a", "b"));
  ASSERT_EQ(rows->size(), 2u);
  EXPECT_EQ((*rows)[0].tokens_per_second.median, 3);  // of 2, 3, 4
  EXPECT_EQ((*rows)[0].repeats, 3);
  EXPECT_EQ(LayerTable(*rows), "") << "a table of what was not measured";
}

TEST(BenchRunnerTest, MeasuresAServerThroughItsClient) {
  FakeInferenceClient client;
  // Each of the two runs is followed by a short one that is traced.
  for (int i = 0; i < 2; ++i) {
    client.answers.push_back({.stats = {.completion_tokens = 11,
                                        .time_to_first_token_ms = 5,
                                        .decode_ms = 100,
                                        .gpu_hit_share = 0.5}});
    client.answers.push_back(
        {.stats = {.completion_tokens = 32, .layers = LayerTimes{.wait_us = 7, .handoff_us = 4}}});
  }
  std::vector<std::unique_ptr<BenchSource>> sources;
  sources.push_back(MakeServerSource(client, "exact", /*exact=*/true));
  const auto prompt = MakeBenchPrompt(client, 500);
  ASSERT_TRUE(prompt.ok());
  EXPECT_EQ(prompt->size(), 500u);
  const auto rows =
      RunBench({.prompt = *prompt, .repeats = 1}, sources, [](int64_t, int64_t) { return true; });
  ASSERT_TRUE(rows.ok());
  EXPECT_EQ((*rows)[0].tokens_per_second.median, 100);
  EXPECT_EQ((*rows)[0].time_per_token_ms.median, 10);
  EXPECT_TRUE(client.asked[0].exact);
  EXPECT_TRUE(client.asked[0].ignore_eos);
  EXPECT_EQ(client.asked[0].max_tokens, 128);
  EXPECT_FALSE(client.asked[2].layer_timings);
  EXPECT_TRUE(client.asked[3].layer_timings);
  EXPECT_EQ(client.asked[3].max_tokens, 32);
  EXPECT_THAT(LayerTable(*rows), ::testing::HasSubstr("hand-off"));
  EXPECT_THAT(LayerTable(*rows), ::testing::HasSubstr("4.0"));
  const auto json = nlohmann::json::parse(BenchJson(*rows, 500, 128, {}));
  EXPECT_EQ(json["rows"][0]["gpu_hit_share"]["median"], 0.5);
  EXPECT_EQ(json["rows"][0]["layer"]["handoff_us"], 4);
}

TEST(BenchRunnerTest, PassesOnAFailure) {
  FakeInferenceClient client;
  std::vector<std::unique_ptr<BenchSource>> sources;
  sources.push_back(MakeServerSource(client, "x", false));
  EXPECT_FALSE(RunBench({.prompt = {1}}, sources, [](int64_t, int64_t) { return true; }).ok());
}

TEST(SpreadTest, OfNoneOneAndEven) {
  EXPECT_EQ(SpreadOf({}).median, 0);
  EXPECT_EQ(SpreadOf({3}).median, 3);
  const Spread spread = SpreadOf({4, 1, 2, 9});
  EXPECT_EQ(spread.median, 3);
  EXPECT_EQ(spread.low, 1);
  EXPECT_EQ(spread.high, 9);
}

}  // namespace
}  // namespace isotherm::cli
