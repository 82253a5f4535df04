#include "gpu_worker/engine/move_pacer.h"

#include <gtest/gtest.h>

#include "tests/fakes/fake_clock.h"

namespace isotherm::gpu {
namespace {

using std::chrono::milliseconds;

TEST(MovePacerTest, HoldsCopiesToTheRateWhileStepsRun) {
  FakeClock clock;
  MovePacer pacer(1'000'000, clock);  // a byte a microsecond
  std::chrono::nanoseconds waited(0);
  for (int64_t done = 10'000; done <= 100'000; done += 10'000) {
    clock.Advance(milliseconds(1));  // the copy itself
    const std::chrono::nanoseconds delay = pacer.Delay(done, true);
    clock.Advance(delay);
    waited += delay;
  }
  EXPECT_EQ(waited, milliseconds(90));  // 100 ms in all, copies included
}

TEST(MovePacerTest, NothingWaitsWithoutStepsOrLimit) {
  FakeClock clock;
  MovePacer idle(1'000, clock);
  EXPECT_EQ(idle.Delay(1 << 30, false).count(), 0);
  EXPECT_EQ(idle.Delay((1 << 30) + 10, true), milliseconds(10));  // only what is new
  MovePacer unlimited(0, clock);
  EXPECT_EQ(unlimited.Delay(1 << 30, true).count(), 0);
}

TEST(MovePacerTest, TimeThatPassedIsNotSavedUp) {
  FakeClock clock;
  MovePacer pacer(1'000'000, clock);
  clock.Advance(std::chrono::seconds(10));
  EXPECT_EQ(pacer.Delay(1'000, true).count(), 0);
  EXPECT_EQ(pacer.Delay(2'000, true), milliseconds(1));
}

}  // namespace
}  // namespace isotherm::gpu
