// The integer-weight model through a device backend: not one bit of any residual may depend on
// weight type, placement, threads, chunks or batch-mates.
#include "tests/reference/integer_model.h"
#include "tests/gpu_worker/device_harness.h"

namespace isotherm::gpu {
namespace {

class IntegerModelDeviceTest : public testing::Test {
 protected:
  void SetUp() override { ISOTHERM_SKIP_WITHOUT_DEVICE(); }
  std::string Write(DType dtype) {
    const std::string path = testing::TempDir() + "/integer-" + std::string(Name(dtype)) + ".gguf";
    EXPECT_TRUE(model_.Write(path, dtype).ok());
    return path;
  }
  reference::IntegerModel model_{reference::IntegerModelOptions{.seed = 11}};
  std::vector<std::vector<int32_t>> prompts_ = model_.Prompts(17, 4);
};

TEST_F(IntegerModelDeviceTest, EveryWeightTypeGivesTheGoldenTokens) {
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0}) {
    DeviceHarness harness(Write(dtype));
    for (const auto& prompt : prompts_) {
      EXPECT_EQ(harness.Greedy(prompt, 40), model_.Golden(prompt, 40)) << Name(dtype);
      EXPECT_EQ(harness.Greedy(prompt, 40, /*exact=*/true), model_.Golden(prompt, 40))
          << Name(dtype);
    }
  }
}

TEST_F(IntegerModelDeviceTest, ThreadsChunksAndPlacementChangeNoBit) {
  const std::string path = Write(DType::kQ8_0);
  for (int threads = 1; threads <= 8; threads *= 2) {
    for (const double share : {0.0, 0.2, 0.6, 1.0}) {
      DeviceHarness harness(path, threads, share, static_cast<uint64_t>(threads));
      std::vector<std::vector<std::vector<int64_t>>> residual;
      const std::vector<int32_t> golden = model_.Golden(prompts_[0], 20, &residual);
      EXPECT_EQ(harness.Greedy(prompts_[0], 20, false, static_cast<size_t>(threads)), golden);
      const auto& last = residual[prompts_[0].size() + 18].back();
      const std::vector<float> got = harness.Residual(1);
      for (size_t i = 0; i < last.size(); ++i) EXPECT_EQ(got[i], static_cast<float>(last[i])) << i;
    }
  }
}

TEST_F(IntegerModelDeviceTest, MovingNeuronsWhileDecodingChangesNoToken) {
  DeviceHarness harness(Write(DType::kF16), 2, 0.3);
  SamplingState greedy({.params = {.temperature = 0}});
  std::vector<int32_t> pages(16);
  std::iota(pages.begin(), pages.end(), 5);
  std::vector<TokenId> out = {harness.Feed(prompts_[1], 0, pages, &greedy)};
  for (int64_t epoch = 2; out.size() < 60; ++epoch) {
    harness.SetHot(epoch, 0.1 * static_cast<double>(epoch % 10), static_cast<uint64_t>(epoch));
    ASSERT_TRUE(harness.device().Retire(epoch - 1).ok());
    out.push_back(harness.Feed(
        {out.back()}, static_cast<int32_t>(prompts_[1].size() + out.size() - 1), pages, &greedy));
  }
  EXPECT_EQ(out, model_.Golden(prompts_[1], 60));
}

TEST_F(IntegerModelDeviceTest, BatchMatesChangeNoToken) {
  DeviceHarness harness(Write(DType::kQ4_0), 2, 0.5);
  std::vector<std::vector<int32_t>> pages(prompts_.size());
  std::vector<std::vector<TokenId>> out(prompts_.size());
  std::vector<SamplingState> states(prompts_.size(), SamplingState({.params = {.temperature = 0}}));
  for (size_t s = 0; s < prompts_.size(); ++s) {
    pages[s].resize(16);
    std::iota(pages[s].begin(), pages[s].end(), static_cast<int32_t>(s * 16));
    out[s].push_back(harness.Feed(prompts_[s], 0, pages[s], &states[s]));
  }
  for (int step = 0; step < 30; ++step) {
    std::vector<DeviceRow> rows;
    std::vector<size_t> who;
    for (size_t s = 0; s < prompts_.size(); ++s) {
      if ((static_cast<size_t>(step) + s) % 5 == 0) continue;  // sits this one out
      rows.push_back({.token = out[s].back(),
                      .position = static_cast<int32_t>(prompts_[s].size() + out[s].size() - 1),
                      .pages = pages[s],
                      .sampling = &states[s]});
      who.push_back(s);
    }
    harness.Run(rows);
    for (size_t i = 0; i < who.size(); ++i)
      out[who[i]].push_back(harness.output().samples[i].token);
  }
  for (size_t s = 0; s < prompts_.size(); ++s) {
    EXPECT_EQ(out[s], model_.Golden(prompts_[s], static_cast<int64_t>(out[s].size()))) << s;
  }
}

}  // namespace
}  // namespace isotherm::gpu
