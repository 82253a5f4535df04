// Both sides as threads over one mapping: what ThreadSanitizer can see.
#include <gtest/gtest.h>

#include <limits>
#include <thread>

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

}  // namespace
}  // namespace isotherm::shm
