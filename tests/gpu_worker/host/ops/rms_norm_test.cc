#include "gpu_worker/host/ops/rms_norm.h"

#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace isotherm::gpu {
namespace {

class RmsNormTest : public testing::TestWithParam<int64_t> {};

TEST_P(RmsNormTest, EqualsTheFormula) {
  const int64_t n = GetParam();
  std::mt19937 rng(static_cast<uint32_t>(n));
  std::normal_distribution<float> normal;
  for (const float size : {1e-4f, 1.0f, 300.0f}) {
    std::vector<float> x(static_cast<size_t>(n)), weight(x.size()), out(x.size() + 1, 7.0f);
    double squares = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      x[i] = size * normal(rng);
      weight[i] = normal(rng);
      squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    }
    RmsNorm(x.data(), weight.data(), n, 1e-5f, out.data());
    for (size_t i = 0; i < x.size(); ++i) {
      const double want = static_cast<double>(x[i]) /
                          std::sqrt(squares / static_cast<double>(n) + 1e-5) *
                          static_cast<double>(weight[i]);
      EXPECT_NEAR(out[i], want, 1e-6 * std::abs(want) + 1e-12);
    }
    EXPECT_EQ(out.back(), 7.0f);
    RmsNorm(x.data(), weight.data(), n, 1e-5f, x.data());  // in place
    EXPECT_TRUE(std::equal(x.begin(), x.end(), out.begin()));
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, RmsNormTest, testing::Values(1, 7, 16, 31, 64, 576, 4099));

}  // namespace
}  // namespace isotherm::gpu
