// A device with layer slots in front of a cold side that has none: the same bits wherever the cut
// is, and no neuron lost when that side dies.
#include "gpu_worker/engine/relayed_cold_attachment.h"

#include <thread>

#include "tests/gpu_worker/device_harness.h"
#include "tests/gpu_worker/fake_cold_link.h"
#include "tests/reference/integer_model.h"

namespace isotherm::gpu {
namespace {

class FakeAttachment final : public ColdAttachment {
 public:
  FakeAttachment(const NeuronStore& neurons, std::vector<uint64_t> hot)
      : fake_(neurons, std::move(hot)) {}
  ColdLink& link() override { return fake_; }
  const NeuronStore* arena() const override { return nullptr; }
  FakeColdLink& fake() { return fake_; }

 private:
  FakeColdLink fake_;
};

class RelayedColdAttachmentTest : public testing::Test {
 protected:
  void SetUp() override {
    ISOTHERM_SKIP_WITHOUT_DEVICE();
    path_ = testing::TempDir() + "/relayed-cold.gguf";
    ASSERT_TRUE(model_.Write(path_, DType::kQ8_0).ok());
    MakeDevice(-1);
  }
  void TearDown() override { TestedDevice::streamed_share = -1; }

  // A quarter of each layer is hot: neurons 0, 4, 8, ..
  void MakeDevice(double streamed_share) {
    TestedDevice::streamed_share = streamed_share;
    harness_.reset();
    relay_.reset();
    harness_ = std::make_unique<DeviceHarness>(path_);
    const BundleLayout& layout = harness_->model().bundle_layout();
    const std::vector<uint64_t> hot(static_cast<size_t>(layout.num_neurons / 64),
                                    0x1111111111111111u);
    PlacementPlan plan{.epoch = 1};
    for (int64_t layer = 0; layer < layout.num_layers; ++layer) {
      plan.layers.push_back(
          {.hot = hot, .num_neurons = layout.num_neurons, .num_hot = layout.num_neurons / 4});
    }
    harness_->UsePlan(plan);
    behind_ = std::make_shared<FakeAttachment>(harness_->neurons(), hot);
    auto relay = RelayedColdAttachment::Make(behind_, layout, 8);
    ASSERT_TRUE(relay.ok()) << relay.status();
    relay_ = *std::move(relay);
    EXPECT_EQ(relay_->link().hash_nonce(), behind_->fake().hash_nonce());
    EXPECT_EQ(relay_->arena(), nullptr);
    harness_->SetLink(&relay_->link());
  }

  const reference::IntegerModel model_{reference::IntegerModelOptions{.seed = 51}};
  const std::vector<int32_t> prompt_ = model_.Prompts(52, 1)[0];
  std::string path_;
  std::shared_ptr<FakeAttachment> behind_;
  std::unique_ptr<RelayedColdAttachment> relay_;
  std::unique_ptr<DeviceHarness> harness_;  // goes first: it has the slots mapped
};

TEST_F(RelayedColdAttachmentTest, TokensAreTheModelsWhereverTheCutIs) {
  for (const double share : {-1.0, 0.0, 0.5, 1.0}) {
    MakeDevice(share);
    EXPECT_EQ(harness_->Greedy(prompt_, 40, false, 8), model_.Golden(prompt_, 40)) << share;
    EXPECT_FALSE(harness_->output().cpu_recomputed);
    const uint64_t before = behind_->fake().reported();
    SamplingState greedy({.params = {.temperature = 0}});
    std::vector<int32_t> pages(16);
    std::iota(pages.begin(), pages.end(), 0);
    harness_->Feed({prompt_[0]}, 0, pages, &greedy);
    EXPECT_EQ(harness_->output().owed_hash,
              harness_->output().work_hash + behind_->fake().reported() - before)
        << share;
  }
}

TEST_F(RelayedColdAttachmentTest, ADeathBehindItLosesNoNeuron) {
  using Dies = FakeColdLink::Dies;
  const int64_t layers = harness_->model().config().num_layers;
  for (const Dies when : {Dies::kAtPost, Dies::kAtWait}) {
    for (int32_t layer = 0; layer < layers; ++layer) {
      MakeDevice(0);
      behind_->fake().DieAt(when, layer);
      EXPECT_EQ(harness_->Greedy(prompt_, 3, false, 8), model_.Golden(prompt_, 3));
      EXPECT_FALSE(relay_->link().alive());
    }
  }
}

TEST_F(RelayedColdAttachmentTest, ADeathIsNoticedWhileNothingIsAsked) {
  behind_->fake().DieAt(FakeColdLink::Dies::kAtEnd, -1);
  EXPECT_TRUE(relay_->link().alive());
  EXPECT_TRUE(behind_->fake().EndOfStep(1, 1, 0, {}).code() == absl::StatusCode::kUnavailable);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (relay_->link().alive() && std::chrono::steady_clock::now() < end)
    std::this_thread::yield();
  EXPECT_FALSE(relay_->link().alive());
}

}  // namespace
}  // namespace isotherm::gpu
