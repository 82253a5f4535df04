#include "models/quantize/block_codec.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/models/random_blocks.h"
#include "tests/reference/dequantize.h"

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

constexpr DType kBlockTypes[] = {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0,
                                 DType::kQ5_1, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K};

TEST(BlockCodecTest, DecodesRandomBlocksAsTheFormatSays) {
  for (const DType dtype : kBlockTypes) {
    constexpr int kBlocks = 200;
    const std::vector<std::byte> row = RandomBlocks(dtype, kBlocks, 11);
    ASSERT_TRUE(AllFinite(dtype, row.data(), kBlocks * Info(dtype).block_elements));
    std::vector<float> out(static_cast<size_t>(kBlocks * Info(dtype).block_elements));
    ASSERT_TRUE(DecodeRow(dtype, row.data(), out).ok());
    for (size_t i = 0; i < out.size(); ++i) {
      const double want = reference::Element(dtype, row.data(), static_cast<int64_t>(i));
      // The product of scale, part's scale and level rounds twice, as does the difference to a
      // minimum, which is at most 2 * 63.
      EXPECT_NEAR(out[i], want, std::ldexp(std::abs(want) + 126.0, -22)) << Name(dtype) << " " << i;
    }
  }
}

TEST(BlockCodecTest, EveryByteOfABlockCounts) {
  for (const DType dtype : kBlockTypes) {
    std::vector<std::byte> block = RandomBlocks(dtype, 1, 5);
    const auto elements = static_cast<size_t>(Info(dtype).block_elements);
    std::vector<float> before(elements), after(elements);
    ASSERT_TRUE(DecodeRow(dtype, block.data(), before).ok());
    for (std::byte& byte : block) {
      byte ^= std::byte{0x11};
      ASSERT_TRUE(DecodeRow(dtype, block.data(), after).ok());
      EXPECT_NE(after, before) << Name(dtype) << " byte " << &byte - block.data();
      byte ^= std::byte{0x11};
    }
  }
}

TEST(BlockCodecTest, FindsTheScaleOrMinimumThatIsNotFinite) {
  for (const DType dtype : kBlockTypes) {
    const int64_t bytes = Info(dtype).block_bytes, columns = 3 * Info(dtype).block_elements;
    const bool min = dtype == DType::kQ4_1 || dtype == DType::kQ5_1 || dtype == DType::kQ4_K ||
                     dtype == DType::kQ5_K;
    for (int block = 0; block < 3; ++block) {
      for (const bool at_min : {false, true}) {
        if (at_min && !min) continue;
        std::vector<std::byte> row = RandomBlocks(dtype, 3, 8);
        ASSERT_TRUE(AllFinite(dtype, row.data(), columns));
        std::byte* const at =
            row.data() + block * bytes + (dtype == DType::kQ6_K ? 208 : 0) + (at_min ? 2 : 0);
        at[1] |= std::byte{0x7c};
        EXPECT_FALSE(AllFinite(dtype, row.data(), columns)) << Name(dtype) << " " << block;
      }
    }
  }
}

TEST(BlockCodecTest, SaysForWhichTypesThereIsNoEncoder) {
  const std::vector<float> in(256, 1.0f);
  std::vector<std::byte> row(2048);
  for (const DType dtype : kBlockTypes) {
    EXPECT_EQ(EncodeRow(dtype, in, row.data()).ok(), CanEncode(dtype)) << Name(dtype);
  }
  EXPECT_FALSE(CanEncode(DType::kQ5_0) || CanEncode(DType::kQ4_K) || CanEncode(DType::kQ6_K));
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

TEST(BlockCodecTest, Q8_0RoundsHalvesAwayFromZero) {
  std::vector<float> in(32, 0.0f);
  in[0] = 127;  // d = 1
  const float given[] = {0.5f, -0.5f, 1.5f, -2.5f, 0.49f, -126.5f};
  const int wanted[] = {1, -1, 2, -3, 0, -127};
  std::copy(std::begin(given), std::end(given), in.begin() + 1);
  std::vector<std::byte> block(34);
  ASSERT_TRUE(EncodeRow(DType::kQ8_0, in, block.data()).ok());
  EXPECT_EQ(block[0], std::byte{0x00});
  EXPECT_EQ(block[1], std::byte{0x3c});
  for (size_t i = 0; i < std::size(wanted); ++i) {
    EXPECT_EQ(static_cast<int8_t>(block[3 + i]), wanted[i]) << given[i];
  }
}

TEST(BlockCodecTest, Q4_0ScalesByTheLargestMagnitudeWithItsSign) {
  std::vector<float> in(32, 0.0f);
  in[0] = -8;  // d = 1
  const float given[] = {7.6f, 0.5f, -0.5f, 0.49f, -7.51f};
  const int wanted[] = {15, 9, 8, 8, 0};
  std::copy(std::begin(given), std::end(given), in.begin() + 1);
  std::vector<std::byte> block(18);
  ASSERT_TRUE(EncodeRow(DType::kQ4_0, in, block.data()).ok());
  EXPECT_EQ(block[1], std::byte{0x3c});
  EXPECT_EQ(static_cast<int>(block[2] & std::byte{15}), 0);
  for (size_t i = 0; i < std::size(wanted); ++i) {
    EXPECT_EQ(static_cast<int>(block[3 + i] & std::byte{15}), wanted[i]) << given[i];
  }
  for (float& x : in) x = -x;  // d = -1: the same levels
  std::vector<std::byte> negated(18);
  ASSERT_TRUE(EncodeRow(DType::kQ4_0, in, negated.data()).ok());
  EXPECT_EQ(negated[1], std::byte{0xbc});
  EXPECT_TRUE(std::equal(block.begin() + 2, block.end(), negated.begin() + 2));
}

TEST(BlockCodecTest, TinyAndHugeBlocksAreDefined) {
  for (const float size : {1e-45f, 1e-40f, 1e-30f, 1e9f, 3e38f}) {
    std::vector<float> in = Random(32, 3);
    for (float& x : in) x = x > 0 ? size : -size;
    for (const DType dtype : {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1}) {
      std::vector<std::byte> row(20 + 14);
      std::vector<float> out(32);
      ASSERT_TRUE(EncodeRow(dtype, in, row.data()).ok());
      ASSERT_TRUE(DecodeRow(dtype, row.data(), out).ok());
      if (size < 1) {
        EXPECT_NEAR(out[0], 0, 1e-6f);
      }
      EXPECT_EQ(AllFinite(dtype, row.data(), 32), size < 1) << Name(dtype) << " " << size;
    }
  }
}

TEST(BlockCodecTest, FindsTheOneValueThatIsNotFinite) {
  const DType plain[] = {DType::kF32, DType::kF16, DType::kBF16};
  for (const DType dtype : plain) {
    const size_t size = static_cast<size_t>(Info(dtype).block_bytes);
    for (size_t columns = 1; columns <= 13; ++columns) {
      std::vector<float> in(columns, dtype == DType::kF16 ? 65504.0f : 3.3e38f);
      in[0] = -in[0];
      std::vector<std::byte> row(columns * size);
      ASSERT_TRUE(EncodeRow(dtype, in, row.data()).ok());
      EXPECT_TRUE(AllFinite(dtype, row.data(), static_cast<int64_t>(columns)));
      for (const float bad : {INFINITY, -INFINITY, NAN}) {
        for (size_t i = 0; i < columns; ++i) {
          std::vector<float> damaged = in;
          damaged[i] = bad;
          ASSERT_TRUE(EncodeRow(dtype, damaged, row.data()).ok());
          EXPECT_FALSE(AllFinite(dtype, row.data(), static_cast<int64_t>(columns)));
        }
      }
    }
  }
}

TEST(BlockCodecTest, RefusesPartialBlocks) {
  std::vector<float> out(31);
  std::vector<std::byte> row(34);
  EXPECT_FALSE(DecodeRow(DType::kQ8_0, row.data(), out).ok());
  EXPECT_FALSE(EncodeRow(DType::kQ8_0, out, row.data()).ok());
  std::vector<float> half_a_super_block(128);
  EXPECT_FALSE(DecodeRow(DType::kQ4_K, row.data(), half_a_super_block).ok());
}

}  // namespace
}  // namespace isotherm
