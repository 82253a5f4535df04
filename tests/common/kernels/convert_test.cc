#include "common/kernels/convert.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "common/tensor/half.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/common/kernels/kernel_test_util.h"
#include "tests/reference/dequantize.h"

namespace isotherm {
namespace {

class ConvertTest : public testing::TestWithParam<int64_t> {
 protected:
  ScopedTarget target_{GetParam()};
};
INSTANTIATE_TEST_SUITE_P(Targets, ConvertTest, testing::ValuesIn(MachineTargets()),
                         [](const auto& i) { return hwy::TargetName(i.param); });

std::vector<uint16_t> AllPatterns() {
  std::vector<uint16_t> all(65536);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  return all;
}

bool SameValue(float a, double b) { return std::isnan(a) ? std::isnan(b) : a == b; }

TEST_P(ConvertTest, WidensEveryHalfExactly) {
  const std::vector<uint16_t> all = AllPatterns();
  std::vector<float> f16(all.size()), bf16(all.size());
  F16ToF32(all, f16);
  Bf16ToF32(all, bf16);
  for (size_t i = 0; i < all.size(); ++i) {
    ASSERT_TRUE(SameValue(f16[i], reference::HalfToDouble(all[i]))) << i;
    ASSERT_TRUE(SameValue(bf16[i], Bf16ToF32(all[i]))) << i;
  }
}

TEST_P(ConvertTest, RoundsToNearestEvenLikeTheScalarsBetweenAllNeighbours) {
  // Each half, the midpoint to the next one, and the floats on both sides of the midpoint.
  std::vector<float> values;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    for (const bool bf16 : {false, true}) {
      const float low = bf16 ? Bf16ToF32(bits) : F16ToF32(bits);
      const float high = bf16 ? Bf16ToF32(bits + 1) : F16ToF32(bits + 1);
      const float middle = low + (high - low) / 2;
      values.insert(values.end(),
                    {low, middle, std::nextafter(middle, low), std::nextafter(middle, high)});
    }
  }
  values.insert(values.end(), {65519.9f, 65520.0f, 1e30f, -1e30f, INFINITY, -INFINITY, NAN});
  std::vector<uint16_t> f16(values.size()), bf16(values.size());
  F32ToF16(values, f16);
  F32ToBf16(values, bf16);
  std::vector<float> rounded_f16 = values, rounded_bf16 = values;
  RoundToF16(rounded_f16);
  RoundToBf16(rounded_bf16);
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::isnan(values[i])) {
      ASSERT_TRUE(std::isnan(F16ToF32(f16[i])) && std::isnan(Bf16ToF32(bf16[i]))) << i;
      ASSERT_TRUE(std::isnan(rounded_f16[i]) && std::isnan(rounded_bf16[i])) << i;
      continue;
    }
    ASSERT_EQ(f16[i], F32ToF16(values[i])) << values[i];
    ASSERT_EQ(bf16[i], F32ToBf16(values[i])) << values[i];
    ASSERT_EQ(rounded_f16[i], F16ToF32(f16[i])) << values[i];
    ASSERT_EQ(rounded_bf16[i], Bf16ToF32(bf16[i])) << values[i];
  }
}

TEST_P(ConvertTest, HandlesRemaindersAndWritesNothingPastTheEnd) {
  for (size_t n = 0; n < 40; ++n) {
    std::vector<float> in(n + 1, 1.5f);
    std::vector<uint16_t> out(n + 1, 7);
    F32ToF16(std::span(in).first(n), std::span(out).first(n));
    EXPECT_EQ(out[n], 7);
    EXPECT_THAT(std::span(out).first(n), testing::Each(F32ToF16(1.5f)));
    in.assign(n + 1, 9.0f);
    F16ToF32(std::span(out).first(n), std::span(in).first(n));
    EXPECT_EQ(in[n], 9.0f);
    EXPECT_THAT(std::span(in).first(n), testing::Each(1.5f));
  }
}

TEST_P(ConvertTest, DecodesRowsOfEveryTypeExactly) {
  for (const DType dtype : KernelTypes()) {
    for (const int64_t columns : {1, 31, 32, 45, 160}) {
      if (columns % Info(dtype).block_elements != 0) continue;
      const OwnedMatrix w(dtype, 1, columns, 0, 3, 1);
      std::vector<float> out(columns);
      ASSERT_TRUE(DecodeRow(dtype, w.view.data, w.view.row_bytes, std::span(out)).ok());
      for (int64_t k = 0; k < columns; ++k) {
        ASSERT_EQ(out[k], reference::Element(w.view, 0, k)) << Name(dtype) << " " << k;
      }
    }
  }
}

TEST(DecodeRowTest, RefusesWhatIsNoRow) {
  std::vector<std::byte> bytes(64);
  std::vector<float> out(32);
  EXPECT_FALSE(DecodeRow(DType::kQ4_1, bytes.data(), 64, out).ok());
  EXPECT_FALSE(DecodeRow(DType::kQ8_0, bytes.data(), 33, out).ok());
  EXPECT_FALSE(DecodeRow(DType::kQ8_0, bytes.data(), 64, std::span(out).first(31)).ok());
  EXPECT_FALSE(DecodeRow(DType::kF32, bytes.data(), 64, {}).ok());
}

}  // namespace
}  // namespace isotherm
