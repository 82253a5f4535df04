// Deaths and pauses of a real process on the other side of the slots.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "common/shm/peer_watch.h"
#include "tests/common/shm/forked_peer.h"
#include "tests/common/shm/slot_pair.h"

namespace isotherm::shm {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// TSan and busy machines stretch everything; the figure that matters is printed.
constexpr milliseconds kSeenWithin{100};

PeerWatch::Callbacks Aborting(SlotClient& client) {
  return {.on_dead = [&client](const absl::Status&) { client.Abort(); },
          .wake = [&client] { client.WakeSelf(); }};
}

ColdLayerHeader Header(int64_t step, milliseconds deadline = milliseconds(20'000)) {
  return {.step_id = step,
          .epoch = 1,
          .num_rows = 2,
          .cut = kTestShape.num_neurons,
          .deadline = In(deadline)};
}

enum class DiesWhen { kFilled, kTaken, kMidPayload, kDone };

class CpuSideDeathTest : public testing::TestWithParam<DiesWhen> {};

TEST_P(CpuSideDeathTest, EndsTheWaitAndNoPartialSumIsRead) {
  std::vector<double> seen_ms;
  for (int round = 0; round < 20; ++round) {
    RegionPair pair;
    ForkedPeer peer([&](ForkedPeer::Ends& ends) {
      auto server = *SlotServer::Create(*pair.cpu);
      ends.Hear();
      if (GetParam() != DiesWhen::kFilled) {
        auto work = server->Next(In(milliseconds(20'000)));
        if (GetParam() == DiesWhen::kMidPayload) {
          for (int i = 0; i < kTestShape.model_dim; ++i) work->partial[i] = 1;
        }
        if (GetParam() == DiesWhen::kDone) {
          (void)ServePost(*server, *work);
        }
      }
      ends.Say('k');
      ::pause();
    });
    auto client = *SlotClient::Create(*pair.gpu);
    PeerWatch watch(std::move(peer.ends().liveness), *pair.gpu, Aborting(*client),
                    {.suspect = milliseconds(10'000), .dead = milliseconds(20'000)});
    const ColdLayerHeader header = Header(round);
    auto buffers = client->BeginPost(header.num_rows, header.deadline);
    ASSERT_TRUE(buffers.ok());
    FillPost(*buffers, client->geometry(), header);
    ASSERT_TRUE(client->Commit(header).ok());
    peer.ends().Say('g');
    ASSERT_EQ(peer.ends().Hear(), 'k');
    if (GetParam() == DiesWhen::kDone) {
      // What it finished before its death counts.
      EXPECT_TRUE(client->Wait(header.deadline).ok());
      const auto killed = steady_clock::now();
      peer.Signal(SIGKILL);
      while (!client->aborted()) std::this_thread::yield();
      seen_ms.push_back(
          std::chrono::duration<double, std::milli>(steady_clock::now() - killed).count());
    } else {
      const auto killed = steady_clock::now();
      peer.Signal(SIGKILL);
      const absl::Status status = client->Wait(header.deadline).status();
      seen_ms.push_back(
          std::chrono::duration<double, std::milli>(steady_clock::now() - killed).count());
      EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    }
    EXPECT_TRUE(absl::IsUnavailable(client->BeginPost(1, In(milliseconds(10'000))).status()) ||
                GetParam() != DiesWhen::kDone);
    EXPECT_EQ(watch.state(), PeerState::kDead);
  }
  std::sort(seen_ms.begin(), seen_ms.end());
  std::printf("death seen: median %.3f ms, worst of %zu %.3f ms\n", seen_ms[seen_ms.size() / 2],
              seen_ms.size(), seen_ms.back());
  EXPECT_LT(seen_ms[seen_ms.size() / 2], static_cast<double>(kSeenWithin.count()));
}

INSTANTIATE_TEST_SUITE_P(InEachSlotState, CpuSideDeathTest,
                         testing::Values(DiesWhen::kFilled, DiesWhen::kTaken, DiesWhen::kMidPayload,
                                         DiesWhen::kDone));

TEST(GpuSideDeathTest, AHalfWrittenPostIsNeverTaken) {
  for (int round = 0; round < 10; ++round) {
    RegionPair pair;
    ForkedPeer peer([&](ForkedPeer::Ends& ends) {
      auto client = *SlotClient::Create(*pair.gpu);
      auto buffers = client->BeginPost(2, In(milliseconds(20'000)));
      buffers->z[0] = 77;  // and no Commit
      ends.Say('k');
      ::pause();
    });
    auto server = *SlotServer::Create(*pair.cpu);
    PeerWatch watch(std::move(peer.ends().liveness), *pair.cpu,
                    {.on_dead = [&](const absl::Status&) { server->Abort(); },
                     .wake = [&] { server->WakeSelf(); }},
                    {.suspect = milliseconds(10'000), .dead = milliseconds(20'000)});
    ASSERT_EQ(peer.ends().Hear(), 'k');
    peer.Signal(SIGKILL);
    const absl::Status status = server->Next(In(milliseconds(20'000))).status();
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  }
}

TEST(PausedPeerTest, IsDeadAfterItsTimeAndItsLateResultIsNeverRead) {
  RegionPair pair;
  ForkedPeer peer([&](ForkedPeer::Ends& ends) {
    auto server = *SlotServer::Create(*pair.cpu);
    PeerWatch watch(std::move(ends.liveness), *pair.cpu, {.on_dead = [](const absl::Status&) {}});
    auto work = server->Next(In(milliseconds(20'000)));
    ends.Say('t');
    ends.Hear();  // stopped here
    (void)ServePost(*server, *work);
    ends.Say('d');
    ::pause();
  });
  auto client = *SlotClient::Create(*pair.gpu);
  const ColdLayerHeader header = Header(1);
  PeerWatch watch(std::move(peer.ends().liveness), *pair.gpu, Aborting(*client));
  auto buffers = client->BeginPost(header.num_rows, header.deadline);
  ASSERT_TRUE(buffers.ok());
  FillPost(*buffers, client->geometry(), header);
  ASSERT_TRUE(client->Commit(header).ok());
  ASSERT_EQ(peer.ends().Hear(), 't');
  const auto stopped = steady_clock::now();
  peer.Signal(SIGSTOP);
  const absl::Status status = client->Wait(header.deadline).status();
  const auto took = steady_clock::now() - stopped;
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_GE(took, milliseconds(240));
  EXPECT_LT(took, milliseconds(2000));

  const uint64_t sequence = pair.gpu->first_sequence();
  EXPECT_NE(pair.gpu->result(sequence).sequence.load(), sequence);
  peer.Signal(SIGCONT);
  peer.ends().Say('c');
  ASSERT_EQ(peer.ends().Hear(), 'd');
  EXPECT_EQ(pair.gpu->result(sequence).sequence.load(), sequence);  // it is there,
  EXPECT_FALSE(client->Wait(In(milliseconds(1000))).ok());          // and ignored
  EXPECT_TRUE(absl::IsUnavailable(client->BeginPost(1, In(milliseconds(1000))).status()));
  EXPECT_EQ(watch.state(), PeerState::kDead);
}

TEST(PausedWatcherTest, DoesNotBlameThePeerForItsOwnPause) {
  RegionPair pair;
  // The child watches; the test's own thread keeps the heartbeat that the child sees.
  ForkedPeer peer([&](ForkedPeer::Ends& ends) {
    PeerWatch watch(std::move(ends.liveness), *pair.gpu, {.on_dead = [](const absl::Status&) {}});
    ends.Say('r');
    ends.Hear();
    ends.Say(watch.state() == PeerState::kAlive ? 'a' : 'd');
    ::pause();
  });
  std::atomic<bool> stop{false};
  std::thread beat([&] {
    for (uint64_t i = 1; !stop.load(); ++i) {
      pair.cpu->own_words().heartbeat.store(i);
      std::this_thread::sleep_for(milliseconds(2));
    }
  });
  EXPECT_EQ(peer.ends().Hear(), 'r');
  peer.Signal(SIGSTOP);
  std::this_thread::sleep_for(milliseconds(400));  // longer than a peer may be silent
  peer.Signal(SIGCONT);
  peer.ends().Say('?');
  EXPECT_EQ(peer.ends().Hear(), 'a');
  stop = true;
  beat.join();
}

}  // namespace
}  // namespace isotherm::shm
