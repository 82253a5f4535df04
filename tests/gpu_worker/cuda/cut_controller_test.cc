#include "gpu_worker/cuda/cut_controller.h"

#include "gtest/gtest.h"

namespace isotherm::gpu {
namespace {

constexpr int64_t kNeurons = 10000;

// What a step takes each side when ids cost the same: cpu and streamed time of all of them.
void Step(CutController& cuts, double cpu_all, double streamed_all) {
  cuts.Observe((1 - cuts.share()) * cpu_all, cuts.share() * streamed_all);
}

TEST(CutControllerTest, EndsWhereBothSidesEndTogether) {
  for (const double ratio : {0.25, 0.5, 1.0, 2.0}) {
    CutController cuts(kNeurons, -1, 0.3, 0.1, 0.02);
    for (int i = 0; i < 200; ++i) Step(cuts, 300, 300 * ratio);
    // Together they take 1 / (1 / 300 + 1 / (300 ratio)).
    EXPECT_NEAR(cuts.share(), 1 / (1 + ratio), 1e-3) << ratio;
    EXPECT_EQ(cuts.cut(), static_cast<int32_t>(kNeurons * (1 - cuts.share())));
  }
}

TEST(CutControllerTest, AFullGainIsThereAtOnce) {
  CutController cuts(kNeurons, -1, 0.8, 1, 1);
  Step(cuts, 100, 300);
  EXPECT_NEAR(cuts.share(), 0.25, 1e-9);
}

TEST(CutControllerTest, OneStumbleMovesLittle) {
  CutController cuts(kNeurons, -1, 0.5, 0.1, 0.02);
  cuts.Observe(50 * 100, 50);  // the cpu side was gone for a while
  EXPECT_NEAR(cuts.share(), 0.52, 1e-9);
}

TEST(CutControllerTest, NeverLeavesOneSideWithoutWork) {
  CutController cuts(kNeurons, -1, 0.3, 0.5, 1);
  for (int i = 0; i < 100; ++i) Step(cuts, 1e6, 1);
  EXPECT_GT(cuts.cut(), 0);
  for (int i = 0; i < 100; ++i) Step(cuts, 1, 1e6);
  EXPECT_LT(cuts.cut(), kNeurons);
}

TEST(CutControllerTest, StaysWhenOneSideHadNothingOrTheShareIsGiven) {
  CutController adaptive(kNeurons, -1, 0.3, 0.5, 1);
  adaptive.Observe(0, 100);
  adaptive.Observe(100, 0);
  EXPECT_EQ(adaptive.share(), 0.3);
  for (const double share : {0.0, 0.4, 1.0}) {
    CutController fixed(kNeurons, share, 0.3, 0.5, 1);
    fixed.Observe(1, 100);
    EXPECT_EQ(fixed.share(), share);
    EXPECT_EQ(fixed.cut(), static_cast<int32_t>(kNeurons * (1 - share)));
  }
}

}  // namespace
}  // namespace isotherm::gpu
