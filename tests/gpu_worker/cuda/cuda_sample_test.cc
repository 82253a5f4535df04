// Sampling on the device beside the host's, from the same logits.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gpu_worker/cuda/cuda_device.h"
#include "gpu_worker/cuda/device_memory.h"
#include "gpu_worker/cuda/kernels/kernels.h"
#include "gpu_worker/engine/sampler.h"
#include "gtest/gtest.h"

namespace isotherm::gpu {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

class CudaSampleTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!HasCudaDevice()) GTEST_SKIP() << "no CUDA GPU on this machine";
  }

  // What the device samples from each row of `logits`, [params, vocabulary].
  std::vector<TokenId> Sample(const std::vector<SamplingState>& states,
                              const std::vector<float>& logits, size_t vocabulary,
                              StepState* state = nullptr) {
    const size_t rows = states.size();
    std::vector<SampleRow> samples;
    for (const SamplingState& sampling : states) {
      const std::optional<PlainDraw> draw = sampling.Plain();
      EXPECT_TRUE(draw.has_value());
      samples.push_back({.on_device = 1,
                         .greedy = draw->greedy ? 1 : 0,
                         .inverse_temperature = draw->inverse_temperature,
                         .floor = draw->floor,
                         .top_k = draw->top_k,
                         .top_p = draw->top_p,
                         .bits = draw->bits,
                         .num_stops = 1,
                         .stops = {1}});
    }
    std::vector<int32_t> logit_rows(rows);
    for (size_t r = 0; r < rows; ++r) logit_rows[r] = static_cast<int32_t>(r);
    const StepHeader header{.num_rows = static_cast<int32_t>(rows),
                            .num_logits = static_cast<int32_t>(rows)};
    const DeviceBytes on_device[] = {
        Copy(&header, sizeof(header)),
        Copy(samples.data(), rows * sizeof(SampleRow)),
        Copy(logits.data(), logits.size() * sizeof(float)),
        Copy(logit_rows.data(), rows * sizeof(int32_t)),
        *DeviceBytes::Make(static_cast<int64_t>(rows * sizeof(int32_t))),
        *DeviceBytes::Make(sizeof(StepState))};
    LaunchSample({.step = {.header = on_device[0].as<StepHeader>(),
                           .logit_rows = on_device[3].as<int32_t>(),
                           .samples = on_device[1].as<SampleRow>(),
                           .state = on_device[5].as<StepState>(),
                           .tokens = on_device[4].as<int32_t>()},
                  .logits = on_device[2].as<float>(),
                  .vocabulary = static_cast<int32_t>(vocabulary)},
                 static_cast<int>(rows), nullptr);
    std::vector<TokenId> tokens(rows);
    EXPECT_EQ(cudaMemcpy(tokens.data(), on_device[4].as<void>(), rows * sizeof(int32_t),
                         cudaMemcpyDeviceToHost),
              cudaSuccess);
    if (state != nullptr) {
      EXPECT_EQ(cudaMemcpy(state, on_device[5].as<void>(), sizeof(*state), cudaMemcpyDeviceToHost),
                cudaSuccess);
    }
    return tokens;
  }

 private:
  static DeviceBytes Copy(const void* from, size_t bytes) {
    absl::StatusOr<DeviceBytes> out = DeviceBytes::Make(static_cast<int64_t>(bytes));
    EXPECT_TRUE(out.ok()) << out.status();
    EXPECT_EQ(cudaMemcpy(out->as<void>(), from, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    return *std::move(out);
  }
};

std::vector<SamplingParams> Kinds() {
  std::vector<SamplingParams> out;
  for (const float temperature : {0.0f, 0.3f, 1.0f, 5.0f}) {
    for (const int32_t top_k : {0, 1, 2, 40, 5000}) {
      for (const float top_p : {0.0f, 0.1f, 0.95f, 0.9999f, 1.0f}) {
        for (const float min_p : {0.0f, 0.02f}) {
          out.push_back(
              {.temperature = temperature, .top_p = top_p, .top_k = top_k, .min_p = min_p});
        }
      }
    }
  }
  return out;
}

TEST_F(CudaSampleTest, DrawsWhatTheHostDraws) {
  std::mt19937 random(5);
  for (const size_t vocabulary : {1, 2, 31, 1000, 32'000, 151'936}) {
    for (const float spread : {1.0f, 4.0f, 30.0f}) {
      for (const bool equals : {false, true}) {
        const std::vector<SamplingParams> kinds = Kinds();
        std::normal_distribution<float> normal(2, spread);
        std::vector<SamplingState> states;
        std::vector<float> logits;
        for (size_t k = 0; k < kinds.size(); ++k) {
          SamplingParams params = kinds[k];
          params.seed = static_cast<int64_t>(random());
          states.emplace_back(SequenceSampling{.params = params});
        }
        // All rows have the same logits, in another order each, to keep this quick.
        std::vector<float> row(vocabulary);
        for (float& logit : row) {
          logit = normal(random);
          if (equals) logit = std::round(logit);
          if (vocabulary > 2 && random() % 17 == 0) logit = random() % 2 == 0 ? NAN : -kInf;
        }
        for (size_t k = 0; k < kinds.size(); ++k) {
          std::rotate(row.begin(), row.begin() + static_cast<int64_t>(vocabulary / 3), row.end());
          logits.insert(logits.end(), row.begin(), row.end());
        }
        const std::vector<TokenId> got = Sample(states, logits, vocabulary);
        for (size_t k = 0; k < kinds.size(); ++k) {
          std::vector<float> copy(logits.begin() + static_cast<int64_t>(k * vocabulary),
                                  logits.begin() + static_cast<int64_t>((k + 1) * vocabulary));
          std::optional<TokenLogprobs> unused;
          EXPECT_EQ(got[k], states[k].Sample(copy, &unused))
              << vocabulary << " logits, spread " << spread << ", temperature "
              << kinds[k].temperature << ", top_k " << kinds[k].top_k << ", top_p "
              << kinds[k].top_p << ", min_p " << kinds[k].min_p;
        }
      }
    }
  }
}

// Weights on a curve, so that each truncation cuts somewhere: shares over many seeds.
TEST_F(CudaSampleTest, SharesAreThoseOfTheDistribution) {
  const std::vector<float> logits = {1.0f, 2.0f, 0.5f, 2.0f, -1.0f, 0.0f};
  constexpr size_t kDraws = 20'000;
  std::vector<SamplingState> states;
  std::vector<float> all;
  for (size_t i = 0; i < kDraws; ++i) {
    states.emplace_back(
        SequenceSampling{.params = {.top_p = 0.8f, .seed = static_cast<int64_t>(i)}});
    all.insert(all.end(), logits.begin(), logits.end());
  }
  std::vector<double> shares(logits.size());
  for (const TokenId token : Sample(states, all, logits.size()))
    shares[static_cast<size_t>(token)] += 1.0 / kDraws;
  // 2.0 twice are 0.36 each, then 1.0 with 0.13: 0.8 is reached by the third.
  const double total = 2 * std::exp(2.0) + std::exp(1.0);
  for (size_t i = 0; i < logits.size(); ++i) {
    const bool kept = logits[i] >= 1;
    EXPECT_NEAR(shares[i], kept ? std::exp(static_cast<double>(logits[i])) / total : 0, 0.018) << i;
  }
}

TEST_F(CudaSampleTest, SaysWhichRowHasNoNumbersAndWhenAStopTokenCame) {
  const std::vector<SamplingState> states(2, SamplingState({.params = {.temperature = 0}}));
  StepState state;
  EXPECT_EQ(Sample(states, {0, 1, 2, 3, 1, 2}, 3, &state), (std::vector<TokenId>{2, 0}));
  EXPECT_EQ(state.failure, kStepOk);
  EXPECT_EQ(state.stopped, 0u);
  EXPECT_EQ(Sample(states, {0, 3, 2, 3, 1, 2}, 3, &state), (std::vector<TokenId>{1, 0}));
  EXPECT_EQ(state.stopped, 1u);
  for (const float bad : {NAN, -kInf}) {
    EXPECT_EQ(Sample(states, {0, 0, 2, bad, bad, bad}, 3, &state), (std::vector<TokenId>{2, -1}));
    EXPECT_EQ(state.failure, kStepNoNumbers);
    EXPECT_EQ(state.failed_layer, 1);
  }
  EXPECT_EQ(Sample(states, {kInf, 0, 2, 1, 0, 0}, 3, &state), (std::vector<TokenId>{-1, 0}));
  EXPECT_EQ(state.failure, kStepNoNumbers);
}

}  // namespace
}  // namespace isotherm::gpu
