#include "gpu_worker/host/ops/rope.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"

namespace isotherm::gpu {
namespace {

constexpr int64_t kDims = 16, kHalf = kDims / 2;

std::vector<float> Head() {
  std::vector<float> head;
  for (int i = 0; i < kDims + 4; ++i) head.push_back(0.25f * static_cast<float>(i) - 1.5f);
  return head;
}

double Angle(int64_t position, int64_t i, double base, double scale, double factor) {
  return static_cast<double>(position) * std::pow(base, -2.0 * static_cast<double>(i) / kDims) /
         scale / factor;
}

TEST(RopeTest, InterleavedRotatesNeighboursAndLeavesTheRest) {
  std::vector<float> factors(kHalf, 2.0f);
  const RopeTable table(kDims, 500.0, 4.0, factors);
  std::vector<float> cos(kHalf), sin(kHalf);
  table.Angles(77, cos.data(), sin.data());
  std::vector<float> head = Head();
  RopeInterleaved(head.data(), cos.data(), sin.data(), kHalf, 0, kDims + 4);
  const std::vector<float> in = Head();
  for (int64_t i = 0; i < kHalf; ++i) {
    const double angle = Angle(77, i, 500, 4, 2);
    const auto a = static_cast<double>(in[static_cast<size_t>(2 * i)]),
               b = static_cast<double>(in[static_cast<size_t>(2 * i + 1)]);
    EXPECT_NEAR(head[static_cast<size_t>(2 * i)], a * std::cos(angle) - b * std::sin(angle), 1e-6);
    EXPECT_NEAR(head[static_cast<size_t>(2 * i + 1)], a * std::sin(angle) + b * std::cos(angle),
                1e-6);
  }
  for (size_t i = kDims; i < head.size(); ++i) EXPECT_EQ(head[i], in[i]);
}

TEST(RopeTest, PiecesOfAHeadGiveTheSameBitsAsTheWhole) {
  const RopeTable table(kDims, 10000.0, 1.0, {});
  std::vector<float> cos(kHalf), sin(kHalf);
  table.Angles(1234, cos.data(), sin.data());
  std::vector<float> whole = Head(), pieces = Head();
  RopeInterleaved(whole.data(), cos.data(), sin.data(), kHalf, 0, kDims + 4);
  RopeInterleaved(pieces.data(), cos.data(), sin.data(), kHalf, 6, kDims + 4);
  RopeInterleaved(pieces.data(), cos.data(), sin.data(), kHalf, 0, 6);
  EXPECT_EQ(whole, pieces);
}

TEST(RopeTest, NeoxIsInterleavedOnReorderedElements) {
  const RopeTable table(kDims, 10000.0, 1.0, {});
  std::vector<float> cos(kHalf), sin(kHalf);
  table.Angles(31, cos.data(), sin.data());
  std::vector<float> neox = Head(), interleaved(kDims);
  for (size_t i = 0; i < kHalf; ++i) {
    interleaved[2 * i] = neox[i];
    interleaved[2 * i + 1] = neox[i + kHalf];
  }
  RopeNeox(neox.data(), cos.data(), sin.data(), kHalf);
  RopeInterleaved(interleaved.data(), cos.data(), sin.data(), kHalf, 0, kDims);
  for (size_t i = 0; i < kHalf; ++i) {
    EXPECT_EQ(neox[i], interleaved[2 * i]);
    EXPECT_EQ(neox[i + kHalf], interleaved[2 * i + 1]);
  }
}

TEST(RopeTest, PositionZeroChangesNothing) {
  const RopeTable table(kDims, 10000.0, 1.0, {});
  std::vector<float> cos(kHalf), sin(kHalf);
  table.Angles(0, cos.data(), sin.data());
  std::vector<float> head = Head();
  RopeInterleaved(head.data(), cos.data(), sin.data(), kHalf, 0, kDims);
  EXPECT_EQ(head, Head());
}

}  // namespace
}  // namespace isotherm::gpu
