#include "common/telemetry/counter_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

namespace isotherm {
namespace {

using testing::ElementsAre;

TEST(CounterTableTest, KeepsCountsApart) {
  CounterTable table(2, 3, /*predicted=*/true);
  AddRelaxed(table.predicted(0)[2], 5);
  AddRelaxed(table.predicted(1)[0], 1);
  AddRelaxed(table.fired(1)[1], 7);
  AddRelaxed(table.fired(1)[1], 1);
  table.AddLayer(1, {.tokens = 3, .gpu_ns = 10, .cold_bytes = 100});
  table.AddLayer(1, {.tokens = 1, .merge_ns = 2});
  NeuronCounters out;
  table.Read(&out);
  EXPECT_THAT(out.predicted, ElementsAre(0, 0, 5, 1, 0, 0));
  EXPECT_THAT(out.fired, ElementsAre(0, 0, 0, 0, 8, 0));
  ASSERT_EQ(out.layers.size(), 2u);
  EXPECT_EQ(out.layers[0].tokens, 0u);
  EXPECT_EQ(out.layers[1].tokens, 4u);
  EXPECT_EQ(out.layers[1].gpu_ns, 10u);
  EXPECT_EQ(out.layers[1].merge_ns, 2u);
  EXPECT_EQ(out.layers[1].cold_bytes, 100u);
}

TEST(CounterTableTest, CountsStepsAndTheirEpochs) {
  CounterTable table(1, 1, /*predicted=*/false);
  NeuronCounters out;
  table.AddStep(7, 0);
  table.Read(&out);
  EXPECT_EQ(out.epoch, 7);
  EXPECT_EQ(out.epoch_changes, 0u);  // the first epoch is no change
  for (const int64_t epoch : {7, 7, 8, 8, 9}) table.AddStep(epoch, 2);
  table.Read(&out);
  EXPECT_EQ(out.epoch, 9);
  EXPECT_EQ(out.epoch_changes, 2u);
  EXPECT_EQ(out.steps, 6u);
  EXPECT_EQ(out.decode_steps, 5u);
  EXPECT_EQ(out.decode_rows, 10u);
  EXPECT_TRUE(out.predicted.empty());
}

TEST(CounterTableTest, ReadersSeeEveryWordGrow) {
  CounterTable table(1, 64, /*predicted=*/true);
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    for (uint32_t i = 0; i < 200'000; ++i) AddRelaxed(table.predicted(0)[i % 64], 1);
    stop = true;
  });
  NeuronCounters before, now;
  table.Read(&before);
  while (!stop) {
    table.Read(&now);
    for (size_t n = 0; n < 64; ++n) EXPECT_GE(now.predicted[n], before.predicted[n]);
    before = now;
  }
  writer.join();
  table.Read(&now);
  for (const uint32_t count : now.predicted) EXPECT_EQ(count, 200'000u / 64);
}

}  // namespace
}  // namespace isotherm
