#include "gpu_worker/engine/device_wait.h"

#include "gtest/gtest.h"

namespace isotherm::gpu {
namespace {

TEST(DeviceWaitTest, EndsWhenTheDeviceIsDoneAndWorksMeanwhile) {
  int polls = 0, meanwhile = 0;
  // Long past its deadline; what is done is done.
  AwaitDevice(
      TimePoint(), [&] { return ++polls < 1; }, [&] { ++meanwhile; });
  EXPECT_EQ(polls, 1);
  EXPECT_EQ(meanwhile, 0);
  AwaitDevice(
      std::chrono::steady_clock::now() + std::chrono::hours(1), [&] { return ++polls < 100; },
      [&] { ++meanwhile; });
  EXPECT_EQ(polls, 100);
  EXPECT_EQ(meanwhile, 98);
}

TEST(DeviceWaitTest, ADeviceThatHangsEndsTheProcess) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  int rings = 0;
  const auto hang = [&] {
    AwaitDevice(
        std::chrono::steady_clock::now(), [] { return true; },
        [&] {
          if (++rings == 1) std::fputs("woke the cpu side\n", stderr);
        });
  };
  EXPECT_EXIT(hang(), testing::ExitedWithCode(70),
              "woke the cpu side\n.*did not finish a step by its deadline");
}

}  // namespace
}  // namespace isotherm::gpu
