#include "common/tensor/half.h"

#include <cmath>
#include <cstdint>

#include "gtest/gtest.h"

namespace isotherm {
namespace {

constexpr uint32_t kInfinity = 0x7c00;  // as F16

// What the bits of a finite, non-negative half mean, from the format's definition.
double Meaning(uint32_t half) {
  const int exponent = static_cast<int>(half >> 10);
  const int mantissa = static_cast<int>(half & 0x3ffu);
  return exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
}

TEST(HalfTest, DecodesEveryFiniteHalf) {
  for (uint32_t half = 0; half < kInfinity; ++half) {
    EXPECT_EQ(F16ToF32(static_cast<uint16_t>(half)), Meaning(half));
    EXPECT_EQ(F16ToF32(static_cast<uint16_t>(half | 0x8000u)), -Meaning(half));
  }
  EXPECT_TRUE(std::signbit(F16ToF32(0x8000)));
}

TEST(HalfTest, EncodesEveryHalfToItself) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const bool nan = (bits & 0x7fffu) > kInfinity;
    EXPECT_EQ(F32ToF16(F16ToF32(half)), nan ? (half | 0x200u) : half);  // NaN becomes quiet
    EXPECT_EQ(std::isnan(F16ToF32(half)), nan);
  }
}

// Between two neighbours the middle goes to the even one, and the floats beside it to their side.
TEST(HalfTest, RoundsToNearestEven) {
  for (uint32_t half = 0; half < kInfinity; ++half) {
    // Above the largest finite half the next one would be 65536.
    const double above = half + 1 == kInfinity ? 65536.0 : Meaning(half + 1);
    const auto middle = static_cast<float>((Meaning(half) + above) / 2);
    const uint32_t even = half % 2 == 0 ? half : half + 1;
    for (const float sign : {1.0f, -1.0f}) {
      const uint32_t bit = sign < 0 ? 0x8000u : 0u;
      EXPECT_EQ(F32ToF16(sign * middle), even | bit);
      EXPECT_EQ(F32ToF16(sign * std::nextafter(middle, 0.0f)), half | bit);
      EXPECT_EQ(F32ToF16(sign * std::nextafter(middle, 1e9f)), (half + 1) | bit);
    }
  }
  EXPECT_EQ(F32ToF16(1e30f), kInfinity);
  EXPECT_EQ(F32ToF16(-INFINITY), kInfinity | 0x8000u);
  EXPECT_EQ(F32ToF16(1e-45f), 0);
}

TEST(HalfTest, RoundsBrainFloatsToNearestEven) {
  EXPECT_EQ(F32ToBf16(1.0f), 0x3f80);
  EXPECT_EQ(F32ToBf16(1.0f + 0x1p-8f), 0x3f80);      // a tie, to even
  EXPECT_EQ(F32ToBf16(1.0f + 3 * 0x1p-8f), 0x3f82);  // a tie, to even
  EXPECT_EQ(F32ToBf16(1.0f + 0x1p-8f + 0x1p-20f), 0x3f81);
  EXPECT_EQ(F32ToBf16(INFINITY), 0x7f80);
  EXPECT_TRUE(std::isnan(Bf16ToF32(F32ToBf16(NAN))));
}

}  // namespace
}  // namespace isotherm
