#include "gpu_worker/engine/sampler.h"

#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace isotherm::gpu {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

const std::vector<float> kLogits = {1.0f, 2.0f, 0.5f, 2.0f, -1.0f, 0.0f};

TokenId Sample(SamplingState& state, std::vector<float> logits = kLogits,
               std::optional<TokenLogprobs>* logprobs = nullptr) {
  std::optional<TokenLogprobs> unused;
  return state.Sample(logits, logprobs != nullptr ? logprobs : &unused);
}

// Frequencies of the tokens over many seeds.
std::map<TokenId, double> Frequencies(SamplingParams params, int draws = 20000) {
  std::map<TokenId, double> out;
  for (int i = 0; i < draws; ++i) {
    params.seed = i;
    SamplingState state({.params = params});
    out[Sample(state)] += 1.0 / draws;
  }
  return out;
}

std::vector<double> Softmax(double temperature, const std::vector<size_t>& kept) {
  std::vector<double> p(kLogits.size(), 0.0);
  double total = 0;
  for (const size_t i : kept)
    total += p[i] = std::exp(static_cast<double>(kLogits[i]) / temperature);
  for (double& v : p) v /= total;
  return p;
}

// Five standard deviations of a share over 20,000 draws are at most 0.018.
void ExpectDistribution(const SamplingParams& params, const std::vector<double>& want) {
  const auto got = Frequencies(params);
  for (size_t i = 0; i < want.size(); ++i) {
    const auto it = got.find(static_cast<TokenId>(i));
    const double share = it == got.end() ? 0 : it->second;
    EXPECT_NEAR(share, want[i], 0.018) << i;
    EXPECT_EQ(share == 0, want[i] == 0) << i;
  }
}

TEST(SamplerTest, GreedyTakesTheLowestIdAmongEquals) {
  SamplingState greedy({.params = {.temperature = 0}});
  EXPECT_EQ(Sample(greedy), 1);
  SamplingState one({.params = {.temperature = 2, .top_k = 1, .seed = 9}});
  EXPECT_EQ(Sample(one), 1);
  SamplingState coldest({.params = {.temperature = 1e-40f, .seed = 9}});
  EXPECT_EQ(Sample(coldest), 1);
}

TEST(SamplerTest, GreedyFindsTheFirstOfTheLargestInAnyVocabulary) {
  std::mt19937 random(4);
  for (const size_t size : {1, 15, 16, 17, 255, 256, 257, 300, 512, 1000}) {
    for (int round = 0; round < 50; ++round) {
      std::vector<float> logits(size);
      // Few values, so that the largest comes several times; some are no numbers.
      for (float& logit : logits)
        logit = random() % 9 == 0 ? NAN : static_cast<float>(random() % 5) - 7;
      TokenId want = -1;
      for (size_t i = 0; i < size; ++i) {
        if (!std::isnan(logits[i]) && (want < 0 || logits[i] > logits[static_cast<size_t>(want)]))
          want = static_cast<TokenId>(i);
      }
      SamplingState greedy({.params = {.temperature = 0}});
      ASSERT_EQ(Sample(greedy, logits), want) << size;
    }
  }
}

TEST(SamplerTest, TemperatureShapesTheDistribution) {
  ExpectDistribution({.temperature = 1}, Softmax(1, {0, 1, 2, 3, 4, 5}));
  ExpectDistribution({.temperature = 0.5f}, Softmax(0.5, {0, 1, 2, 3, 4, 5}));
}

TEST(SamplerTest, TruncationsKeepTheirTokensAndRenormalise) {
  ExpectDistribution({.top_k = 3}, Softmax(1, {0, 1, 3}));
  // 2.0 twice are 0.36 each, then 1.0 with 0.13: 0.8 is reached by the third.
  ExpectDistribution({.top_p = 0.8f}, Softmax(1, {0, 1, 3}));
  ExpectDistribution({.top_p = 0.0f}, Softmax(1, {1}));
  // 0.3 of the highest probability: logits of at least 2 - 1.2.
  ExpectDistribution({.min_p = 0.3f}, Softmax(1, {0, 1, 3}));
  ExpectDistribution({.temperature = 2, .min_p = 0.3f}, Softmax(2, {0, 1, 2, 3, 5}));
}

TEST(SamplerTest, StreamDependsOnSeedAndCountAlone) {
  SamplingState a({.params = {.seed = 4}}), b({.params = {.seed = 4}}), c({.params = {.seed = 5}});
  std::vector<TokenId> from_a, from_b, from_c;
  for (int i = 0; i < 50; ++i) {
    from_a.push_back(Sample(a));
    from_b.push_back(Sample(b));
    from_c.push_back(Sample(c));
  }
  EXPECT_EQ(from_a, from_b);
  EXPECT_NE(from_a, from_c);
}

TEST(SamplerTest, PlainDrawsAreThoseThatNeedTheLogitsAlone) {
  SamplingState plain(
      {.params = {.temperature = 0.5f, .top_p = 0.9f, .top_k = 7, .min_p = 0.1f, .seed = 3}});
  const std::optional<PlainDraw> second = plain.Plain(1);
  ASSERT_TRUE(second.has_value());
  EXPECT_FALSE(second->greedy);
  EXPECT_EQ(second->inverse_temperature, 2);
  EXPECT_NEAR(second->floor, 0.5 * std::log(0.1), 1e-6);
  EXPECT_EQ(second->top_k, 7);
  EXPECT_EQ(second->top_p, 0.9f);
  EXPECT_NE(second->bits, plain.Plain()->bits);
  plain.Take(3);  // by a device
  EXPECT_EQ(plain.num_sampled(), 1);
  EXPECT_EQ(plain.Plain()->bits, second->bits);
  EXPECT_TRUE(SamplingState({.params = {.temperature = 0}}).Plain()->greedy);

  for (const SequenceSampling& needs :
       {SequenceSampling{.params = {.repetition_penalty = 1.1f}},
        SequenceSampling{.params = {.frequency_penalty = 0.1f}},
        SequenceSampling{.params = {.presence_penalty = 0.1f}},
        SequenceSampling{.params = {.logit_bias = {{3, 1.0f}}}},
        SequenceSampling{.top_logprobs = 0}, SequenceSampling{.min_tokens = 1}}) {
    EXPECT_FALSE(SamplingState(needs).Plain().has_value());
  }
  SamplingState masked({.stop_token_ids = {2}, .min_tokens = 1});
  masked.Take(1);
  EXPECT_TRUE(masked.Plain().has_value());
}

TEST(SamplerTest, ResumedSequenceGoesOnAsIfNeverInterrupted) {
  const SequenceSampling sampling{
      .params = {.repetition_penalty = 1.3f, .frequency_penalty = 0.4f, .seed = 8},
      .penalty_tokens = {0, 2},
      .min_tokens = 3};
  SamplingState whole(sampling);
  std::vector<TokenId> want;
  for (int i = 0; i < 30; ++i) want.push_back(Sample(whole));
  for (int32_t cut = 0; cut < 10; ++cut) {
    SamplingState resumed(sampling);
    for (int32_t position = 0; position < 2 + cut; ++position) {
      for (int twice = 0; twice < 2; ++twice) {
        resumed.Observe(position, position < 2
                                      ? sampling.penalty_tokens[static_cast<size_t>(position)]
                                      : want[static_cast<size_t>(position - 2)]);
      }
    }
    EXPECT_EQ(resumed.num_sampled(), cut);
    for (size_t i = static_cast<size_t>(cut); i < want.size(); ++i)
      EXPECT_EQ(Sample(resumed), want[i]) << cut << " " << i;
  }
}

TEST(SamplerTest, PenaltiesCountPromptAndOutputAsDefined) {
  // Repetition: prompt token 1 is divided, so token 3 wins; then 3 was output too.
  SamplingState repetition(
      {.params = {.temperature = 0, .repetition_penalty = 1.5f}, .penalty_tokens = {1, 1, 4}});
  EXPECT_EQ(Sample(repetition), 3);
  EXPECT_EQ(Sample(repetition), 1);  // both 2 / 1.5
  // Presence once, frequency by count; the prompt does not count.
  SamplingState presence(
      {.params = {.temperature = 0, .presence_penalty = 0.6f}, .penalty_tokens = {1}});
  EXPECT_EQ(Sample(presence), 1);
  EXPECT_EQ(Sample(presence), 3);
  EXPECT_EQ(Sample(presence), 1);  // still 2 - 0.6
  SamplingState frequency({.params = {.temperature = 0, .frequency_penalty = 0.6f}});
  EXPECT_EQ(Sample(frequency), 1);
  EXPECT_EQ(Sample(frequency), 3);
  EXPECT_EQ(Sample(frequency), 1);
  EXPECT_EQ(Sample(frequency), 3);
  EXPECT_EQ(Sample(frequency), 0);  // 2 - 1.2 < 1
}

TEST(SamplerTest, NegativeLogitIsMultipliedByTheRepetitionPenalty) {
  SamplingState state(
      {.params = {.temperature = 0, .repetition_penalty = 2.0f}, .penalty_tokens = {0}});
  EXPECT_EQ(Sample(state, {-1.0f, -1.5f}), 1);
}

TEST(SamplerTest, BiasAndForeignIds) {
  SamplingState state(
      {.params = {.temperature = 0, .logit_bias = {{4, 5.0f}, {77, 9.0f}, {-3, 9.0f}}},
       .stop_token_ids = {99},
       .penalty_tokens = {-1, 1000},
       .min_tokens = 4});
  EXPECT_EQ(Sample(state), 4);
}

TEST(SamplerTest, StopTokensAreMaskedUntilMinTokens) {
  SamplingState state({.params = {.temperature = 0}, .stop_token_ids = {1, 3}, .min_tokens = 2});
  EXPECT_EQ(Sample(state), 0);
  EXPECT_EQ(Sample(state), 0);
  EXPECT_EQ(Sample(state), 1);
  EXPECT_TRUE(state.IsStop(3));
  EXPECT_FALSE(state.IsStop(0));
}

TEST(SamplerTest, LogprobsAreOfTheWholeDistribution) {
  SamplingState state({.params = {.temperature = 0}, .top_logprobs = 3});
  std::optional<TokenLogprobs> logprobs;
  EXPECT_EQ(Sample(state, kLogits, &logprobs), 1);
  ASSERT_TRUE(logprobs.has_value());
  const std::vector<double> p = Softmax(1, {0, 1, 2, 3, 4, 5});
  EXPECT_NEAR(logprobs->sampled.logprob, std::log(p[1]), 1e-5);
  ASSERT_EQ(logprobs->top.size(), 3u);
  EXPECT_EQ(logprobs->top[0].token_id, 1);
  EXPECT_EQ(logprobs->top[1].token_id, 3);
  EXPECT_EQ(logprobs->top[2].token_id, 0);
  EXPECT_NEAR(logprobs->top[2].logprob, std::log(p[0]), 1e-5);
  SamplingState none({.params = {.temperature = 0}, .top_logprobs = 0});
  std::optional<TokenLogprobs> sampled_only;
  Sample(none, kLogits, &sampled_only);
  ASSERT_TRUE(sampled_only.has_value());
  EXPECT_TRUE(sampled_only->top.empty());
}

TEST(SamplerTest, LogitsThatAreNoNumbersGiveNoToken) {
  for (const float temperature : {0.0f, 1.0f}) {
    SamplingState state({.params = {.temperature = temperature}, .top_logprobs = 2});
    EXPECT_EQ(Sample(state, {NAN, NAN}), -1);
    EXPECT_EQ(Sample(state, {1.0f, kInf}), -1);
    EXPECT_EQ(Sample(state, {-kInf, -kInf}), -1);
    EXPECT_EQ(state.num_sampled(), 0);
    EXPECT_EQ(Sample(state, {NAN, -kInf, 3.0f}), 2);
  }
}

}  // namespace
}  // namespace isotherm::gpu
