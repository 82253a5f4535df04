// Both sides as threads over one mapping: what ThreadSanitizer can see.
#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <thread>
#include <vector>

#include "tests/common/shm/slot_pair.h"

namespace isotherm::shm {
namespace {

using std::chrono::milliseconds;

// Serves posts until the attachment ends; returns how many steps ended.
int64_t ServeUntilAborted(SlotServer& server) {
  int64_t steps = 0;
  while (true) {
    auto work = server.Next(In(milliseconds(500)));
    if (absl::IsDeadlineExceeded(work.status())) continue;
    if (!work.ok()) return steps;
    steps += work->header.layer == kEndOfStep;
    if (!ServePost(server, *work).ok()) return -1;
  }
}

class SlotProtocolTest : public testing::TestWithParam<uint64_t> {};

TEST_P(SlotProtocolTest, EveryLayerOfManyStepsGetsItsOwnResult) {
  RegionPair pair(GetParam());
  auto client = *SlotClient::Create(*pair.gpu);
  auto server = *SlotServer::Create(*pair.cpu);
  int64_t served_steps = 0;
  std::thread serve([&] { served_steps = ServeUntilAborted(*server); });
  constexpr int kSteps = 1000;
  for (int step = 0; step < kSteps; ++step) {
    for (int layer = 0; layer < kTestShape.num_layers; ++layer) {
      const ColdLayerHeader header{.step_id = step,
                                   .epoch = 5,
                                   .layer = layer,
                                   .attempt = 1,
                                   .num_rows = 1 + (step + layer) % kTestShape.max_rows,
                                   .cut = kTestShape.num_neurons,
                                   .deadline = In(milliseconds(10'000))};
      const absl::Status status = RoundTrip(*client, header);
      ASSERT_TRUE(status.ok()) << status << " in step " << step << " layer " << layer;
    }
    ASSERT_TRUE(client->PostEndOfStep(step, 5, 1, In(milliseconds(10'000))).ok());
  }
  // The end of the last step is taken before the server sees the abort: posts are served in order.
  ASSERT_TRUE(RoundTrip(*client, {.num_rows = 1, .deadline = In(milliseconds(10'000))}).ok());
  client->Abort();
  serve.join();
  EXPECT_EQ(served_steps, kSteps);
  EXPECT_EQ(client->dropped(), 0);
}

INSTANTIATE_TEST_SUITE_P(AlsoWhenSequencesWrap, SlotProtocolTest,
                         testing::Values(uint64_t{1}, (uint64_t{1} << 32) - 2,
                                         std::numeric_limits<uint64_t>::max() - 1));

// State, not time: how long the server would spin, by what its last wait brought.
TEST(SpinPolicyTest, AServerThatWaitsInVainSleepsUntilAPostComes) {
  RegionPair pair;
  const WaitOptions options{.spin = std::chrono::microseconds(7),
                            .device_spin = std::chrono::microseconds(900)};
  auto client = *SlotClient::Create(*pair.gpu);
  auto server = *SlotServer::Create(*pair.cpu, options, /*device_rings=*/true);
  EXPECT_EQ(server->next_spin(), options.device_spin);
  EXPECT_TRUE(absl::IsDeadlineExceeded(server->Next(In(milliseconds(-1))).status()));
  EXPECT_EQ(server->next_spin(), std::chrono::microseconds(0));
  ASSERT_TRUE(client->PostEndOfStep(1, 2, 3, In(milliseconds(10'000))).ok());
  auto work = server->Next(In(milliseconds(10'000)));
  ASSERT_TRUE(work.ok()) << work.status();
  EXPECT_EQ(server->next_spin(), options.device_spin);
}

TEST(SpinPolicyTest, OnlyADeviceThatCannotWakeIsWaitedForLonger) {
  RegionPair pair;
  const WaitOptions options{.spin = std::chrono::microseconds(7),
                            .device_spin = std::chrono::microseconds(900)};
  EXPECT_EQ((*SlotServer::Create(*pair.cpu, options))->next_spin(), options.spin);
  const WaitOptions patient{.spin = std::chrono::microseconds(2000),
                            .device_spin = std::chrono::microseconds(900)};
  EXPECT_EQ((*SlotServer::Create(*pair.cpu, patient, true))->next_spin(), patient.spin);
}

// Each side's "I sleep" is wiped out all the time, so that nobody is ever woken.
TEST(LostWakeTest, TimedRoundsKeepTheStepsGoing) {
  RegionPair pair;
  const WaitOptions no_spin{.spin = std::chrono::microseconds(0), .round = milliseconds(5)};
  auto client = *SlotClient::Create(*pair.gpu, no_spin);
  auto server = *SlotServer::Create(*pair.cpu, no_spin);
  std::atomic<bool> stop{false};
  std::thread thief([&] {
    while (!stop.load()) {
      pair.gpu->own_words().sleeps.store(0);
      pair.cpu->own_words().sleeps.store(0);
    }
  });
  std::thread serve([&] { ServeUntilAborted(*server); });
  for (int step = 0; step < 30; ++step) {
    const absl::Status status =
        RoundTrip(*client, {.step_id = step, .num_rows = 1, .deadline = In(milliseconds(20'000))});
    EXPECT_TRUE(status.ok()) << status;
  }
  client->Abort();
  serve.join();
  stop = true;
  thief.join();
}

TEST(BusyCoresTest, StepsGoOnWhileEveryCoreIsTaken) {
  RegionPair pair;
  auto client = *SlotClient::Create(*pair.gpu);
  auto server = *SlotServer::Create(*pair.cpu);
  std::atomic<bool> stop{false};
  std::vector<std::thread> hogs;
  for (unsigned i = 0; i < 2 * std::thread::hardware_concurrency(); ++i) {
    hogs.emplace_back([&] {
      while (!stop.load(std::memory_order_relaxed)) {
      }
    });
  }
  std::thread serve([&] { ServeUntilAborted(*server); });
  for (int step = 0; step < 50; ++step) {
    const absl::Status status =
        RoundTrip(*client, {.step_id = step, .num_rows = 1, .deadline = In(milliseconds(20'000))});
    EXPECT_TRUE(status.ok()) << status;
  }
  client->Abort();
  serve.join();
  stop = true;
  for (std::thread& hog : hogs) hog.join();
}

TEST(DeadlineTest, ALateResultIsNotTakenForTheNextPost) {
  RegionPair pair;
  auto client = *SlotClient::Create(*pair.gpu);
  auto server = *SlotServer::Create(*pair.cpu);
  const ColdLayerHeader late{.step_id = 1, .num_rows = 1, .deadline = In(milliseconds(10))};
  auto buffers = client->BeginPost(1, late.deadline);
  ASSERT_TRUE(buffers.ok());
  FillPost(*buffers, client->geometry(), late);
  ASSERT_TRUE(client->Commit(late).ok());
  EXPECT_TRUE(absl::IsDeadlineExceeded(client->Wait(late.deadline).status()));
  auto work = server->Next(In(milliseconds(1000)));
  ASSERT_TRUE(work.ok());
  EXPECT_TRUE(work->cancelled);
  std::thread serve([&] {
    (void)ServePost(*server, *work);
    ServeUntilAborted(*server);
  });
  const absl::Status status =
      RoundTrip(*client, {.step_id = 2, .num_rows = 2, .deadline = In(milliseconds(20'000))});
  EXPECT_TRUE(status.ok()) << status;
  client->Abort();
  serve.join();
}

TEST(DeadlineTest, AFullRingIsAnErrorAndNotAnOverwrite) {
  RegionPair pair;
  auto client = *SlotClient::Create(*pair.gpu);
  for (int i = 0; i < kTestShape.num_slots; ++i) {
    EXPECT_TRUE(client->PostEndOfStep(i, 0, 0, In(milliseconds(1000))).ok());
  }
  EXPECT_TRUE(absl::IsDeadlineExceeded(client->BeginPost(1, In(milliseconds(5))).status()));
  EXPECT_TRUE(absl::IsDeadlineExceeded(client->PostEndOfStep(9, 0, 0, In(milliseconds(5)))));
}

TEST(MisuseTest, OutOfOrderCallsAndNumbersAreRefused) {
  RegionPair pair;
  auto client = *SlotClient::Create(*pair.gpu);
  auto server = *SlotServer::Create(*pair.cpu);
  EXPECT_FALSE(SlotClient::Create(*pair.cpu).ok());
  EXPECT_FALSE(SlotServer::Create(*pair.gpu).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(client->Commit({.num_rows = 1})));
  EXPECT_TRUE(absl::IsFailedPrecondition(client->Wait(In(milliseconds(1))).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(client->BeginPost(0, In(milliseconds(1))).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      client->BeginPost(kTestShape.max_rows + 1, In(milliseconds(1))).status()));
  ASSERT_TRUE(client->BeginPost(2, In(milliseconds(1))).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(client->Commit({.num_rows = 1})));
  EXPECT_TRUE(
      absl::IsInvalidArgument(client->Commit({.layer = kTestShape.num_layers, .num_rows = 2})));
  EXPECT_TRUE(
      absl::IsInvalidArgument(client->Commit({.num_rows = 2, .cut = kTestShape.num_neurons + 1})));
  EXPECT_TRUE(absl::IsFailedPrecondition(server->Finish({}, {})));
}

}  // namespace
}  // namespace isotherm::shm
