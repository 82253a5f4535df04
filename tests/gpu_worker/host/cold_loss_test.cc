// The cpu_worker is lost at every moment of every layer: the step ends with the same bits, computed
// from the arena, and every neuron is accounted for once.
#include <algorithm>
#include <numeric>

#include "tests/gpu_worker/device_harness.h"
#include "tests/gpu_worker/fake_cold_link.h"
#include "tests/reference/integer_model.h"

namespace isotherm::gpu {
namespace {

class ColdLossTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ = testing::TempDir() + "/cold-loss.gguf";
    ASSERT_TRUE(model_.Write(path_, DType::kQ8_0).ok());
  }
  // A quarter of each layer is hot: neurons 0, 4, 8, ..
  static void SetHot(DeviceHarness& harness) {
    PlacementPlan plan{.epoch = 1};
    const BundleLayout& layout = harness.model().bundle_layout();
    for (int64_t layer = 0; layer < layout.num_layers; ++layer) {
      plan.layers.push_back({.hot = HotWords(layout.num_neurons),
                             .num_neurons = layout.num_neurons,
                             .num_hot = layout.num_neurons / 4});
    }
    harness.UsePlan(plan);
  }
  static std::vector<uint64_t> HotWords(int64_t neurons) {
    return std::vector<uint64_t>(static_cast<size_t>(neurons / 64), 0x1111111111111111u);
  }
  static std::vector<int32_t> Pages() {
    std::vector<int32_t> pages(16);
    std::iota(pages.begin(), pages.end(), 0);
    return pages;
  }
  // Feeds the prompt: what the step owed is what it did and what the link did for it, no more.
  void ExpectWholeAccount(DeviceHarness& harness, const FakeColdLink& link) {
    const uint64_t before = link.reported();
    SamplingState greedy({.params = {.temperature = 0}});
    harness.Feed(prompt_, 0, Pages(), &greedy);
    EXPECT_EQ(harness.output().owed_hash, harness.output().work_hash + link.reported() - before);
  }

  const reference::IntegerModel model_{reference::IntegerModelOptions{.seed = 51}};
  const std::vector<int32_t> prompt_ = model_.Prompts(52, 1)[0];
  std::string path_;
};

TEST_F(ColdLossTest, WithALinkThatLivesBothSidesTogetherOweNothing) {
  DeviceHarness harness(path_);
  SetHot(harness);
  FakeColdLink link(harness.neurons(), HotWords(model_.options().ffn_dim));
  harness.SetLink(&link);
  EXPECT_EQ(harness.Greedy(prompt_, 20), model_.Golden(prompt_, 20));
  EXPECT_FALSE(harness.output().cpu_recomputed);
  ExpectWholeAccount(harness, link);
}

TEST_F(ColdLossTest, TheCutThatASlowPeerBringsAboutChangesNoToken) {
  DeviceHarness harness(path_);
  SetHot(harness);
  FakeColdLink link(harness.neurons(), HotWords(model_.options().ffn_dim));
  harness.SetLink(&link);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(harness.Greedy(prompt_, 60), model_.Golden(prompt_, 60));
  const auto neurons = static_cast<int32_t>(model_.options().ffn_dim);
  const auto is_cut = [neurons](int32_t cut) { return cut > 0 && cut < neurons; };
  EXPECT_EQ(link.cuts().front(), neurons);
  EXPECT_GT(std::count_if(link.cuts().begin(), link.cuts().end(), is_cut), 100);
  // The last step's account is whole, too.
  ExpectWholeAccount(harness, link);
  // And if the peer dies under a cut, what it owed is computed here and nothing twice.
  link.DieAt(FakeColdLink::Dies::kAtWait, 2);
  SamplingState greedy({.params = {.temperature = 0}});
  harness.Feed(prompt_, 0, Pages(), &greedy);
  EXPECT_TRUE(harness.output().cpu_recomputed);
}

TEST_F(ColdLossTest, DeathInAnyLayerChangesNoBit) {
  std::vector<std::vector<std::vector<int64_t>>> residual;
  const std::vector<int32_t> golden = model_.Golden(prompt_, 3, &residual);
  for (const auto dies :
       {FakeColdLink::Dies::kAtPost, FakeColdLink::Dies::kAtWait, FakeColdLink::Dies::kAtEnd}) {
    for (int32_t layer = 0; layer < model_.options().num_layers; ++layer) {
      SCOPED_TRACE(testing::Message() << "dies " << static_cast<int>(dies) << " in " << layer);
      DeviceHarness harness(path_);
      SetHot(harness);
      FakeColdLink link(harness.neurons(), HotWords(model_.options().ffn_dim));
      harness.SetLink(&link);
      SamplingState greedy({.params = {.temperature = 0}});
      const std::vector<int32_t> pages = Pages();
      EXPECT_EQ(harness.Feed(prompt_, 0, pages, &greedy), golden[0]);
      link.DieAt(dies, layer);
      const auto next = static_cast<int32_t>(prompt_.size());
      EXPECT_EQ(harness.Feed({golden[0]}, next, pages, &greedy), golden[1]);
      EXPECT_TRUE(harness.output().cpu_recomputed);
      const auto& want = residual[prompt_.size()].back();
      for (size_t i = 0; i < want.size(); ++i)
        EXPECT_EQ(harness.device().residual()[i], static_cast<float>(want[i])) << i;
      // And on without it.
      EXPECT_EQ(harness.Feed({golden[1]}, next + 1, pages, &greedy), golden[2]);
    }
  }
}

}  // namespace
}  // namespace isotherm::gpu
