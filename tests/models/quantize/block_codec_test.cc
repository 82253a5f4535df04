#include "models/quantize/block_codec.h"

#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace isotherm {
namespace {

std::vector<float> Random(size_t n, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(n);
  for (float& x : out) x = normal(rng);
  return out;
}

TEST(BlockCodecTest, RoundTripStaysWithinHalfAStep) {
  const struct {
    DType dtype;
    float step;  // of a block's largest magnitude
  } cases[] = {{DType::kF32, 0},          {DType::kF16, 0x1p-11f},
               {DType::kBF16, 0x1p-8f},   {DType::kQ8_0, 0.51f / 127},
               {DType::kQ4_0, 1.01f / 8}, {DType::kQ4_1, 0.51f * 2 / 15}};
  for (const auto& c : cases) {
    const std::vector<float> in = Random(32 * 20, 7);
    std::vector<std::byte> row(static_cast<size_t>(RowBytes(c.dtype, 32 * 20).value()));
    std::vector<float> out(in.size());
    ASSERT_TRUE(EncodeRow(c.dtype, in, row.data()).ok());
    ASSERT_TRUE(DecodeRow(c.dtype, row.data(), out).ok());
    for (size_t block = 0; block < in.size(); block += 32) {
      float top = 0;
      for (size_t i = block; i < block + 32; ++i) top = std::max(top, std::abs(in[i]));
      for (size_t i = block; i < block + 32; ++i) {
        EXPECT_NEAR(in[i], out[i], top * (c.step + 0x1p-10f * (c.step > 0))) << Name(c.dtype);
      }
    }
  }
}

TEST(BlockCodecTest, ZeroBlocksStayZero) {
  for (const DType dtype : {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1}) {
    const std::vector<float> in(32, 0.0f);
    std::vector<std::byte> row(20 + 14);
    std::vector<float> out(32, 1.0f);
    ASSERT_TRUE(EncodeRow(dtype, in, row.data()).ok());
    ASSERT_TRUE(DecodeRow(dtype, row.data(), out).ok());
    EXPECT_EQ(out, in);
  }
}

TEST(BlockCodecTest, Q4_0PutsTheLowNibblesFirst) {
  std::vector<std::byte> block(18, std::byte{0x88});  // every level 8 - 8 = 0
  block[0] = std::byte{0x00};
  block[1] = std::byte{0x3c};  // d = 1
  block[2] = std::byte{0x9a};  // element 0: 10 - 8, element 16: 9 - 8
  std::vector<float> out(32);
  ASSERT_TRUE(DecodeRow(DType::kQ4_0, block.data(), out).ok());
  EXPECT_EQ(out[0], 2.0f);
  EXPECT_EQ(out[16], 1.0f);
  EXPECT_EQ(out[1], 0.0f);
}

TEST(BlockCodecTest, RefusesPartialBlocks) {
  std::vector<float> out(31);
  std::vector<std::byte> row(34);
  EXPECT_FALSE(DecodeRow(DType::kQ8_0, row.data(), out).ok());
  EXPECT_FALSE(EncodeRow(DType::kQ8_0, out, row.data()).ok());
}

}  // namespace
}  // namespace isotherm
