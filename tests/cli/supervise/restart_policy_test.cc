#include "cli/supervise/restart_policy.h"

#include <gtest/gtest.h>

#include <vector>

namespace isotherm::cli {
namespace {

constexpr ExitReport kKilled{.by_signal = true, .value = 9};

TEST(RestartPolicyTest, BacksOffFromOneToSixtySeconds) {
  RestartPolicy policy({.jitter = 0.0}, 1);
  std::vector<int64_t> delays;
  for (int i = 0; i < 10; ++i) delays.push_back(policy.OnExit(kKilled, true)->count());
  EXPECT_EQ(delays,
            (std::vector<int64_t>{0, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000, 60000}));
}

TEST(RestartPolicyTest, StartsAtOnceAgainAfterAReady) {
  RestartPolicy policy({.jitter = 0.0}, 1);
  policy.OnExit(kKilled, true);
  policy.OnExit(kKilled, true);
  policy.OnReady();
  EXPECT_EQ(policy.OnExit(kKilled, true)->count(), 0);
}

TEST(RestartPolicyTest, JitterShortensADelayByAtMostItsShare) {
  RestartPolicy policy({.jitter = 0.2}, 7);
  policy.OnExit(kKilled, true);
  for (int i = 0; i < 100; ++i) {
    const auto delay = policy.OnExit(kKilled, true)->count();
    EXPECT_GE(delay, 800);
    EXPECT_LE(delay, 60000);
  }
}

TEST(RestartPolicyTest, NeverRestartsFlagsModelAndFit) {
  RestartPolicy policy({}, 1);
  for (const int code : {64, 65, 78}) {
    EXPECT_FALSE(policy.OnExit({.value = code}, true).has_value()) << code;
  }
  for (const int code : {0, 1, 70, 71, 75}) {
    EXPECT_TRUE(policy.OnExit({.value = code}, true).has_value()) << code;
  }
}

TEST(RestartPolicyTest, AfterTheServerWasReadyItNeverGivesUp) {
  RestartPolicy policy({.max_failures_before_first_ready = 2}, 1);
  for (int i = 0; i < 1000; ++i) EXPECT_TRUE(policy.OnExit(kKilled, true).has_value());
}

}  // namespace
}  // namespace isotherm::cli
