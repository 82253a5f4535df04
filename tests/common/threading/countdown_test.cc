#include "common/threading/countdown.h"

#include <chrono>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace isotherm {
namespace {

// Without spinning the futex path is what is tested.
class CountdownTest : public testing::TestWithParam<int> {
 protected:
  std::chrono::microseconds spin_{GetParam()};
};
INSTANTIATE_TEST_SUITE_P(Spin, CountdownTest, testing::Values(0, 20));

TEST_P(CountdownTest, WaitSeesWhatWasWrittenBeforeEveryPartWasTaken) {
  constexpr int kThreads = 3, kParts = 5, kRounds = 200;
  Countdown countdown;
  for (int round = 0; round < kRounds; ++round) {
    std::vector<int> written(kThreads, 0);
    countdown.Reset(kThreads * kParts);
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        for (int part = 1; part < kParts; ++part) countdown.Take(1);
        written[static_cast<size_t>(t)] = round + 1;
        countdown.Take(1);
      });
    }
    countdown.Wait(spin_);
    ASSERT_TRUE(countdown.Done());
    for (const int value : written) ASSERT_EQ(value, round + 1);
    for (std::thread& thread : threads) thread.join();
  }
}

TEST_P(CountdownTest, NoPartsAreDoneAtOnce) {
  Countdown countdown;
  countdown.Reset(0);
  countdown.Wait(spin_);
  EXPECT_TRUE(countdown.Done());
  countdown.Reset(2);
  EXPECT_FALSE(countdown.Done());
  countdown.Take(2);
  countdown.Wait(spin_);
}

}  // namespace
}  // namespace isotherm
