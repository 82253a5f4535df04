#include "gpu_worker/host/ops/layer_norm.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace isotherm::gpu {
namespace {

class LayerNormTest : public testing::TestWithParam<int64_t> {};

TEST_P(LayerNormTest, EqualsTheFormula) {
  const int64_t n = GetParam();
  std::mt19937 rng(static_cast<uint32_t>(n));
  std::normal_distribution<float> normal;
  // {size of the deviations, mean}: a mean far above them must not eat the variance.
  for (const auto& [size, offset] : std::initializer_list<std::pair<float, float>>{
           {1e-4f, 0.0f}, {1.0f, 0.0f}, {300.0f, -40.0f}, {1.0f, 500.0f}}) {
    std::vector<float> x(static_cast<size_t>(n)), weight(x.size()), bias(x.size());
    std::vector<float> out(x.size() + 1, 7.0f);
    double mean = 0, variance = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      x[i] = offset + size * normal(rng);
      weight[i] = normal(rng);
      bias[i] = normal(rng);
      mean += static_cast<double>(x[i]) / static_cast<double>(n);
    }
    for (const float v : x) {
      variance += std::pow(static_cast<double>(v) - mean, 2) / static_cast<double>(n);
    }
    LayerNorm(x.data(), weight.data(), bias.data(), n, 1e-5f, out.data());
    // The mean's own error, a rounding of a value of its size, is all that is not relative.
    const double factor = 1 / std::sqrt(variance + 1e-5);
    const double lost = 4 * std::ldexp(std::abs(mean) + std::sqrt(variance), -24) * factor;
    for (size_t i = 0; i < x.size(); ++i) {
      const double scaled =
          (static_cast<double>(x[i]) - mean) * factor * static_cast<double>(weight[i]);
      const double want = scaled + static_cast<double>(bias[i]);
      EXPECT_NEAR(out[i], want,
                  1e-6 * (std::abs(scaled) + std::abs(want)) +
                      lost * std::abs(static_cast<double>(weight[i])));
    }
    EXPECT_EQ(out.back(), 7.0f);
    LayerNorm(x.data(), weight.data(), bias.data(), n, 1e-5f, x.data());  // in place
    EXPECT_TRUE(std::equal(x.begin(), x.end(), out.begin()));
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, LayerNormTest, testing::Values(1, 7, 16, 31, 64, 576, 4099));

TEST(LayerNormConstantTest, ARowOfOneValueGivesTheBias) {
  const std::vector<float> x(40, 3.25f), weight(40, 2.0f);
  std::vector<float> bias(40), out(40);
  for (size_t i = 0; i < bias.size(); ++i) bias[i] = static_cast<float>(i);
  LayerNorm(x.data(), weight.data(), bias.data(), 40, 1e-5f, out.data());
  EXPECT_EQ(out, bias);
}

}  // namespace
}  // namespace isotherm::gpu
