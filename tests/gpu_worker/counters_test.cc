// What a device counts of its neurons. Compiled for each backend.
#include <unistd.h>

#include <atomic>
#include <thread>

#include "tests/gpu_worker/device_harness.h"
#include "tests/reference/random_model.h"

namespace isotherm::gpu {
namespace {

class CountersTest : public testing::Test {
 protected:
  void SetUp() override { ISOTHERM_SKIP_WITHOUT_DEVICE(); }

  static std::string Write(bool sparse) {
    const std::string path = testing::TempDir() + "/counters-" + std::to_string(sparse) + "-" +
                             std::to_string(::getpid()) + ".gguf";
    const absl::Status status = reference::WriteRandomModel(path, {.sparse = sparse, .seed = 61});
    EXPECT_TRUE(status.ok()) << status;
    return path;
  }
  static NeuronCounters Read(DeviceHarness& harness) {
    NeuronCounters counters;
    const absl::Status status = harness.device().ReadCounters(&counters);
    EXPECT_TRUE(status.ok()) << status;
    return counters;
  }
  static uint64_t Sum(const std::vector<uint32_t>& counts) {
    return std::accumulate(counts.begin(), counts.end(), uint64_t{0});
  }

  const std::vector<TokenId> prompt_ = {3, 17, 40, 8, 25, 31, 2};
  const std::vector<int32_t> pages_ = {0, 1, 2, 3};
};

TEST_F(CountersTest, EveryPredictedNeuronIsCountedOnceARow) {
  DeviceHarness harness(Write(true), 3, 0.4);
  const auto layers = static_cast<size_t>(harness.model().config().num_layers);
  SamplingState greedy({.params = {.temperature = 0}});
  int64_t active = 0, open = 0;
  TokenId token = harness.Feed(prompt_, 0, pages_, &greedy);
  active += harness.output().active_neurons;
  open += harness.output().open_neurons;
  for (int32_t i = 0; i < 10; ++i) {
    token = harness.Feed({token}, static_cast<int32_t>(prompt_.size()) + i, pages_, &greedy);
    active += harness.output().active_neurons;
    open += harness.output().open_neurons;
  }
  const NeuronCounters counters = Read(harness);
  EXPECT_EQ(Sum(counters.predicted), static_cast<uint64_t>(active));
  EXPECT_EQ(Sum(counters.fired), static_cast<uint64_t>(open));
  EXPECT_GT(open, 0);
  EXPECT_EQ(counters.steps, 11u);
  EXPECT_EQ(counters.decode_steps, 10u);
  EXPECT_EQ(counters.decode_rows, 10u);
  EXPECT_EQ(counters.epoch, 1);
  ASSERT_EQ(counters.layers.size(), layers);
  for (const LayerCounters& layer : counters.layers) {
    EXPECT_EQ(layer.tokens, prompt_.size() + 10);
    EXPECT_EQ(layer.exact_tokens, 0u);
    EXPECT_LE(layer.timed_steps, 10u);
    EXPECT_GT(layer.cold_bytes, 0u);  // nobody else computes them here
  }
  for (size_t n = 0; n < counters.fired.size(); ++n) {
    EXPECT_LE(counters.fired[n], counters.predicted[n]) << n;
  }
}

TEST_F(CountersTest, PlacementChangesNoCount) {
  const std::string path = Write(true);
  std::vector<NeuronCounters> counters;
  for (const double share : {0.0, 0.5, 1.0}) {
    DeviceHarness harness(path, 2, share, 8);
    harness.Greedy(prompt_, 12);
    counters.push_back(Read(harness));
  }
  for (const NeuronCounters& other : counters) {
    EXPECT_EQ(other.predicted, counters[0].predicted);
    EXPECT_EQ(other.fired, counters[0].fired);
  }
  EXPECT_EQ(counters[2].layers[0].cold_bytes, 0u);
}

TEST_F(CountersTest, ExactRowsSayNothingOfThePredictor) {
  DeviceHarness harness(Write(true), 2, 0.5);
  harness.Feed(prompt_, 0, pages_, nullptr, /*exact=*/true);
  const NeuronCounters counters = Read(harness);
  EXPECT_EQ(Sum(counters.predicted), 0u);
  EXPECT_EQ(Sum(counters.fired), static_cast<uint64_t>(harness.output().open_neurons));
  for (const LayerCounters& layer : counters.layers) {
    EXPECT_EQ(layer.tokens, 0u);
    EXPECT_EQ(layer.exact_tokens, prompt_.size());
    EXPECT_EQ(layer.timed_steps, 0u);
  }
}

TEST_F(CountersTest, WithoutAPredictorEveryNeuronCounts) {
  DeviceHarness harness(Write(false), 2, 0.5);
  harness.Feed(prompt_, 0, pages_, nullptr);
  const NeuronCounters counters = Read(harness);
  for (const uint32_t count : counters.predicted) EXPECT_EQ(count, prompt_.size());
  EXPECT_EQ(counters.layers[0].tokens, prompt_.size());
}

TEST_F(CountersTest, DecodeStepsAreTimedNowAndThen) {
  DeviceHarness harness(Write(true), 2, 0.5);
  SamplingState greedy({.params = {.temperature = 0}});
  TokenId token = harness.Feed(prompt_, 0, pages_, &greedy);
  for (int32_t i = 0; i < 40; ++i)
    token = harness.Feed({token}, static_cast<int32_t>(prompt_.size()) + i, pages_, &greedy);
  EXPECT_TRUE(harness.output().timings.empty());  // nobody asked for them
  const NeuronCounters counters = Read(harness);
  for (const LayerCounters& layer : counters.layers) {
    EXPECT_GE(layer.timed_steps, 2u);
    EXPECT_LE(layer.timed_steps, 40u);
    EXPECT_GT(layer.gpu_ns, 0u);
    EXPECT_GT(layer.merge_ns, 0u);
    EXPECT_GT(layer.hot_bytes, 0u);
    EXPECT_EQ(layer.cpu_ns, 0u);  // there is no cpu side
  }
}

TEST_F(CountersTest, CountsWhileStepsRun) {
  DeviceHarness harness(Write(true), 2, 0.5);
  std::atomic<bool> done{false};
  std::thread reader([&] {
    NeuronCounters last = Read(harness);
    while (!done) {
      const NeuronCounters now = Read(harness);
      EXPECT_GE(now.steps, last.steps);
      for (size_t n = 0; n < now.predicted.size(); ++n)
        EXPECT_GE(now.predicted[n], last.predicted[n]);
      last = now;
    }
  });
  const std::vector<TokenId> out = harness.Greedy(prompt_, 60);
  done = true;
  reader.join();
  EXPECT_EQ(out.size(), 60u);
  EXPECT_EQ(Read(harness).decode_steps, 59u);
}

TEST_F(CountersTest, SeesTheEpochsOfSteps) {
  DeviceHarness harness(Write(true), 2, 0.5);
  harness.Feed({3}, 0, pages_, nullptr);
  harness.Feed({4}, 1, pages_, nullptr);
  harness.SetHot(5, 0.2, 3);
  harness.Feed({5}, 2, pages_, nullptr);
  const NeuronCounters counters = Read(harness);
  EXPECT_EQ(counters.epoch, 5);
  EXPECT_EQ(counters.epoch_changes, 1u);
  EXPECT_EQ(counters.decode_steps, 0u);  // nothing sampled
}

}  // namespace
}  // namespace isotherm::gpu
