#include "bench/synthetic/row_kernels.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "models/quantize/block_codec.h"
#include "tests/common/kernels/kernel_test_util.h"

namespace isotherm::bench {
namespace {

// Runs `test` once for each instruction set that this machine has.
template <typename Test>
void OnEveryTarget(const Test& test) {
  for (const int64_t target : MachineTargets()) {
    const ScopedTarget scoped(target);
    SCOPED_TRACE(hwy::TargetName(target));
    test();
  }
}

std::vector<int8_t> Drawn(uint64_t seed, const LevelTable& table, int64_t count) {
  std::vector<int8_t> levels(static_cast<size_t>(count));
  DrawLevels(seed, table, count, levels.data());
  return levels;
}

TEST(RowKernelsTest, LevelsAreTheSameOnEveryInstructionSet) {
  const std::vector<int8_t> wanted = Drawn(7, kNormalLevels, 1024);
  OnEveryTarget([&] {
    EXPECT_EQ(Drawn(7, kNormalLevels, 1024), wanted);
    // A longer row begins alike.
    std::vector<int8_t> longer = Drawn(7, kNormalLevels, 2048);
    longer.resize(1024);
    EXPECT_EQ(longer, wanted);
  });
  EXPECT_NE(Drawn(8, kNormalLevels, 1024), wanted);
}

TEST(RowKernelsTest, LevelsHaveTheTablesMoments) {
  const struct {
    LevelTable table;
    double variance;
  } cases[] = {{kNormalLevels, 13.5}, {kBasisLevels, 1.5}};
  for (const auto& c : cases) {
    constexpr int64_t kCount = 1 << 20;
    const std::vector<int8_t> levels = Drawn(1, c.table, kCount);
    double sum = 0, square = 0, neighbours = 0;
    for (size_t i = 0; i < levels.size(); ++i) {
      sum += levels[i];
      square += levels[i] * levels[i];
      if (i > 0) neighbours += levels[i] * levels[i - 1];
    }
    // Five standard errors of the mean, and of products whose deviation is the variance.
    const double root = std::sqrt(static_cast<double>(kCount));
    EXPECT_NEAR(sum / kCount, 0, 5 * std::sqrt(c.variance) / root);
    EXPECT_NEAR(square / kCount, c.variance, 5 * 1.5 * c.variance / root);
    EXPECT_NEAR(neighbours / kCount, 0, 5 * c.variance / root);
  }
}

TEST(RowKernelsTest, MixesRowsAndSumsSquares) {
  const std::vector<int8_t> a = Drawn(1, kBasisLevels, 384), b = Drawn(2, kBasisLevels, 384),
                            c = Drawn(3, kBasisLevels, 384);
  OnEveryTarget([&] {
    for (int bits = 0; bits < 8; ++bits) {
      const MixedRows mix{
          .rows = {a.data(), b.data(), c.data()},
          .signs = {(bits & 1) != 0 ? 1 : -1, (bits & 2) != 0 ? 1 : -1, (bits & 4) != 0 ? 1 : -1}};
      std::vector<int8_t> out(384);
      const int64_t square = MixRows(mix, 384, out.data());
      int64_t wanted = 0;
      for (size_t i = 0; i < 384; ++i) {
        const int sum = mix.signs[0] * a[i] + mix.signs[1] * b[i] + mix.signs[2] * c[i];
        ASSERT_EQ(out[i], sum);
        wanted += sum * sum;
      }
      EXPECT_EQ(square, wanted);
    }
  });
}

TEST(RowKernelsTest, EveryTypeHoldsTheLevelsExactly) {
  // Every value of -8 .. 7, and a tail for the types without blocks.
  std::vector<int8_t> levels(160 + 13);
  for (size_t i = 0; i < levels.size(); ++i) levels[i] = static_cast<int8_t>(i * 5 % 16) - 8;
  OnEveryTarget([&] {
    for (const DType dtype : {DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0}) {
      for (const int exponent : {-15, -7, 0}) {
        const int64_t count = Info(dtype).block_elements > 1 ? 160 : 173;
        std::vector<std::byte> row(static_cast<size_t>(*RowBytes(dtype, count)) + 1);
        EncodeLevels(dtype, levels.data(), count, exponent, row.data() + 1);  // at any byte
        std::vector<float> values(static_cast<size_t>(count));
        ASSERT_TRUE(DecodeRow(dtype, row.data() + 1, values).ok());
        for (size_t i = 0; i < values.size(); ++i) {
          ASSERT_EQ(values[i], std::ldexp(static_cast<float>(levels[i]), exponent))
              << Name(dtype) << " " << i;
        }
      }
    }
  });
}

}  // namespace
}  // namespace isotherm::bench
