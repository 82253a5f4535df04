#include "common/threading/thread_pool.h"

#include <pthread.h>

#include <atomic>
#include <numeric>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace isotherm {
namespace {

using std::chrono::microseconds;

// spin 0: every worker and the caller sleep at once, so the futex paths are what is tested.
class ThreadPoolTest : public testing::TestWithParam<std::tuple<int, int>> {
 protected:
  ThreadPool pool_{{.num_threads = std::get<0>(GetParam()),
                    .spin = microseconds(std::get<1>(GetParam())),
                    .name = "test"}};
};
INSTANTIATE_TEST_SUITE_P(ThreadsAndSpin, ThreadPoolTest,
                         testing::Combine(testing::Values(1, 2, 3, 8), testing::Values(0, 20)));

TEST_P(ThreadPoolTest, RunCallsEveryIndexOnceAndIndexZeroOnTheCaller) {
  const int n = pool_.num_threads();
  for (int round = 0; round < 200; ++round) {
    std::vector<int> calls(n, 0);
    std::thread::id zero;
    pool_.Run([&](int idx) {
      ++calls[idx];
      if (idx == 0) zero = std::this_thread::get_id();
    });
    ASSERT_THAT(calls, testing::Each(1)) << "round " << round;
    ASSERT_EQ(zero, std::this_thread::get_id());
  }
}

TEST_P(ThreadPoolTest, ElasticRunDoesAllWorkOfACursorOnce) {
  for (int round = 0; round < 200; ++round) {
    std::vector<int> items(64, 0);
    std::vector<int> calls(pool_.num_threads(), 0);
    std::atomic<size_t> cursor{0};
    pool_.RunElastic([&](int idx) {
      ++calls[idx];
      for (size_t i; (i = cursor.fetch_add(1)) < items.size();) ++items[i];
    });
    ASSERT_THAT(items, testing::Each(1)) << "round " << round;
    ASSERT_THAT(calls, testing::Each(testing::Le(1)));
    ASSERT_EQ(calls[0], 1);
  }
}

TEST_P(ThreadPoolTest, MixesBothKindsOfSection) {
  int64_t total = 0;
  for (int round = 0; round < 300; ++round) {
    std::vector<int64_t> sums(pool_.num_threads(), 0);
    if (round % 2 == 0) {
      pool_.Run([&](int idx) { sums[idx] = 1; });
      ASSERT_EQ(std::accumulate(sums.begin(), sums.end(), int64_t{0}), pool_.num_threads());
    } else {
      pool_.RunElastic([&](int idx) { sums[idx] = idx == 0 ? 1 : 0; });
      total += std::accumulate(sums.begin(), sums.end(), int64_t{0});
    }
  }
  EXPECT_EQ(total, 150);
}

TEST_P(ThreadPoolTest, BarrierSeparatesPhases) {
  const int n = pool_.num_threads();
  Barrier barrier(n, microseconds(std::get<1>(GetParam())));
  std::vector<int> values(n, 0);
  std::atomic<int> wrong{0};
  pool_.Run([&](int idx) {
    for (int phase = 1; phase <= 100; ++phase) {
      values[idx] = phase;
      barrier.Wait();
      for (int v : values) wrong += v != phase;
      barrier.Wait();
    }
  });
  EXPECT_EQ(wrong, 0);
}

TEST(ThreadPoolLifeTest, StartsAndStopsWithoutASection) {
  for (int i = 0; i < 20; ++i) ThreadPool pool({.num_threads = 4, .spin = microseconds(0)});
}

TEST(ThreadPoolLifeTest, ThreadsCarryThePoolsNameCutToTheKernelsLimit) {
  ThreadPool pool({.num_threads = 2, .name = "a-rather-long-name"});
  std::string name(32, '\0');
  pool.Run([&](int idx) {
    if (idx == 1) pthread_getname_np(pthread_self(), name.data(), name.size());
  });
  EXPECT_EQ(name.substr(0, 15), "a-rather-long-n");
}

TEST(ThreadPoolLifeTest, BindsThreadsToTheirCpusAndTheCallerWhenAsked) {
  const std::vector<int> allowed = AllowedCpus();
  ThreadPool pool({.num_threads = 3, .cpus = {allowed.back(), allowed.front()}});
  std::vector<std::vector<int>> masks(3);
  std::thread caller([&] {
    EXPECT_TRUE(pool.BindCaller());
    pool.Run([&](int idx) { masks[static_cast<size_t>(idx)] = AllowedCpus(); });
  });
  caller.join();
  EXPECT_THAT(masks[0], testing::ElementsAre(allowed.back()));
  EXPECT_THAT(masks[1], testing::ElementsAre(allowed.front()));
  EXPECT_THAT(masks[2], testing::ElementsAre(allowed.back()));
  EXPECT_EQ(AllowedCpus(), allowed) << "this thread did not call BindCaller";
}

TEST(ThreadPoolLifeTest, ZeroThreadsMeansTheDefaultCount) {
  ThreadPool pool({});
  EXPECT_EQ(pool.num_threads(), DefaultThreadCount());
}

}  // namespace
}  // namespace isotherm
