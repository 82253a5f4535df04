#include "common/kernels/predictor.h"

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/common/kernels/kernel_test_util.h"

namespace isotherm {
namespace {

class PredictorTest : public testing::TestWithParam<int64_t> {
 protected:
  ScopedTarget target_{GetParam()};
};
INSTANTIATE_TEST_SUITE_P(Targets, PredictorTest, testing::ValuesIn(MachineTargets()),
                         [](const auto& i) { return hwy::TargetName(i.param); });

TEST_P(PredictorTest, SetsABitWhereTheScoreIsNotBelowTheThreshold) {
  RandomWeights random(1);
  for (const int64_t neurons : {1, 7, 63, 64, 65, 200}) {
    const int64_t rows = 3, stride = neurons + 5, words = (neurons + 63) / 64;
    std::vector<float> scores;
    for (int64_t i = 0; i < rows * stride; ++i) scores.push_back(random.Value(2));  // many ties
    scores[0] = NAN;
    scores[stride] = -INFINITY;
    std::vector<uint64_t> bitmap(rows * words + 1, 0xabcd);
    ASSERT_TRUE(ScoresToBitmap({.scores = scores.data(),
                                .stride = stride,
                                .num_rows = rows,
                                .num_neurons = neurons,
                                .threshold = 1.0f,
                                .bitmap = bitmap.data()})
                    .ok());
    EXPECT_EQ(bitmap.back(), 0xabcdu);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t bit = 0; bit < words * 64; ++bit) {
        const bool set = bitmap[row * words + bit / 64] >> (bit % 64) & 1;
        const bool want = bit < neurons && !(scores[row * stride + bit] < 1.0f);
        ASSERT_EQ(set, want) << "neurons=" << neurons << " row=" << row << " bit=" << bit;
      }
    }
  }
}

TEST_P(PredictorTest, ReluZeroesNegativesAndKeepsNan) {
  for (size_t n = 0; n < 40; ++n) {
    std::vector<float> values(n + 1, -1.0f);
    for (size_t i = 0; i < n; i += 2) values[i] = static_cast<float>(i + 1);
    if (n > 3) values[3] = NAN;
    Relu(std::span(values).first(n));
    for (size_t i = 0; i < n; ++i) {
      if (i == 3) {
        EXPECT_TRUE(std::isnan(values[i]));
      } else {
        EXPECT_EQ(values[i], i % 2 == 0 ? static_cast<float>(i + 1) : 0.0f);
      }
    }
    EXPECT_EQ(values[n], -1.0f);
  }
}

TEST(PredictorValidationTest, RefusesShapesThatDisagree) {
  float score = 0;
  uint64_t word = 0;
  EXPECT_FALSE(ScoresToBitmap({&score, 1, 2, 3, 0, &word}).ok());
  EXPECT_FALSE(ScoresToBitmap({nullptr, 3, 1, 3, 0, &word}).ok());
  EXPECT_FALSE(ScoresToBitmap({&score, 1, -1, 1, 0, &word}).ok());
  EXPECT_TRUE(ScoresToBitmap({nullptr, 0, 0, 3, 0, nullptr}).ok());
}

}  // namespace
}  // namespace isotherm
