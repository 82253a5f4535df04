#include "placement_service/telemetry/drift_detector.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace isotherm {
namespace {

class DriftDetectorTest : public testing::Test {
 protected:
  // Reports of 20 tokens about `share`, whose tokens scatter by 0.15; the alarms among them.
  int Feed(DriftDetector& detector, double share, int tokens) {
    std::normal_distribution<double> noise(0, 0.15 / std::sqrt(20.0));
    int alarms = 0;
    for (int i = 0; i < tokens / 20; ++i)
      alarms += detector.Add(20, share + noise(random_)) ? 1 : 0;
    return alarms;
  }
  std::mt19937_64 random_{3};
};

TEST_F(DriftDetectorTest, NoiseRaisesNoAlarm) {
  DriftDetector detector({});
  detector.Expect(0.6);
  EXPECT_EQ(Feed(detector, 0.6, 2'000'000), 0);
  EXPECT_NEAR(detector.usual(), 0.6, 0.02);
}

TEST_F(DriftDetectorTest, AFallIsSeenWithinTwoHundredTokens) {
  for (const double fall : {0.12, 0.2, 0.4}) {
    DriftDetector detector({});
    detector.Expect(0.6);
    EXPECT_EQ(Feed(detector, 0.6, 4'000), 0);
    EXPECT_EQ(Feed(detector, 0.6 - fall, 200), 1) << fall;
  }
}

TEST_F(DriftDetectorTest, AWrongPromiseIsDriftToo) {
  DriftDetector detector({});
  detector.Expect(0.6);  // what the plan promised
  EXPECT_EQ(Feed(detector, 0.4, 200), 1);
}

TEST_F(DriftDetectorTest, ARiseOrASlowChangeIsNone) {
  DriftDetector detector({});
  detector.Expect(0.5);
  EXPECT_EQ(Feed(detector, 0.5, 2'000), 0);
  EXPECT_EQ(Feed(detector, 0.8, 2'000), 0);
  int alarms = 0;
  for (int i = 0; i < 100; ++i) alarms += Feed(detector, 0.8 - 0.002 * i, 2'000);
  EXPECT_EQ(alarms, 0);  // the plan follows that without forgetting anything
}

TEST_F(DriftDetectorTest, SwingsAreAlarmedOfLessAndLess) {
  DriftDetector detector({});
  detector.Expect(0.6);
  int first = 0, later = 0;
  for (int i = 0; i < 300; ++i) {
    const int alarms = Feed(detector, i % 2 == 0 ? 0.6 : 0.45, 2'000);
    (i < 30 ? first : later) += alarms;
  }
  EXPECT_GE(first, 1);
  EXPECT_LE(first, 6);
  EXPECT_LE(later, 6);  // of 135 falls
  EXPECT_GT(detector.pause_tokens(), 50'000);
  // Calm days give the short pause back.
  EXPECT_EQ(Feed(detector, 0.6, 1'200'000), 0);
  EXPECT_EQ(detector.pause_tokens(), DriftOptions().pause_tokens);
  EXPECT_EQ(Feed(detector, 0.4, 400), 1);
}

TEST_F(DriftDetectorTest, AChangeOfThePlanHidesNoFall) {
  DriftDetector detector({});
  detector.Expect(0.6);
  EXPECT_EQ(Feed(detector, 0.6, 4'000), 0);
  // A plan a second, each expected to be a little better; the traffic gives a quarter less.
  int alarms = 0;
  for (int i = 0; i < 4; ++i) {
    detector.Expect(0.6 + 0.005 * i);
    alarms += Feed(detector, 0.45, 100);
  }
  EXPECT_EQ(alarms, 1);
  // A better plan that keeps its promise is no rise, and the old one again no fall.
  DriftDetector calm({});
  for (int i = 0; i < 20; ++i) {
    const double share = i % 2 == 0 ? 0.4 : 0.6;
    calm.Expect(share);
    EXPECT_EQ(Feed(calm, share, 400), 0);
  }
}

TEST_F(DriftDetectorTest, NothingIsWatchedThatNobodyExpects) {
  DriftDetector detector({});
  EXPECT_EQ(Feed(detector, 0.9, 4'000), 0);
  EXPECT_EQ(Feed(detector, 0.1, 4'000), 0);
  detector.Expect(0.6);
  EXPECT_EQ(Feed(detector, 0.3, 400), 1);
}

TEST_F(DriftDetectorTest, EmptyReportsSayNothing) {
  DriftDetector detector({});
  detector.Expect(0.6);
  EXPECT_FALSE(detector.Add(0, 0));
  EXPECT_EQ(detector.recent(), 0.6);
}

}  // namespace
}  // namespace isotherm
