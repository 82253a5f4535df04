// What the driver counts while the budget of hot neurons changes: memory goes back to it and is
// taken again, between steps of a decode whose tokens stay golden.
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "common/base/exit_code.h"
#include "gmock/gmock.h"
#include "gpu_worker/cuda/driver_memory.h"
#include "gpu_worker/cuda/hot_memory.h"
#include "tests/gpu_worker/device_harness.h"
#include "tests/reference/integer_model.h"

namespace isotherm::gpu {
namespace {

using testing::HasSubstr;

constexpr int64_t kMiB = int64_t{1} << 20;

int64_t FreeBytes() {
  size_t free = 0, total = 0;
  EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  return static_cast<int64_t>(free);
}

// Takes all that is free on the device, in smaller and smaller pieces.
class HeldMemory {
 public:
  HeldMemory() {
    for (int64_t bytes = int64_t{1} << 34; bytes >= kMiB; bytes /= 2) {
      void* piece = nullptr;
      while (cudaMalloc(&piece, static_cast<size_t>(bytes)) == cudaSuccess)
        pieces_.push_back(piece);
    }
    cudaGetLastError();
  }
  ~HeldMemory() {
    for (void* piece : pieces_) cudaFree(piece);
  }

 private:
  std::vector<void*> pieces_;
};

class CudaHotMemoryTest : public testing::Test {
 protected:
  void SetUp() override {
    ISOTHERM_SKIP_WITHOUT_DEVICE();
    ASSERT_EQ(cudaFree(nullptr), cudaSuccess);  // the context is there
  }
};

TEST_F(CudaHotMemoryTest, GivesMemoryBackToTheDriverAndKeepsWhatStays) {
  const int64_t before = FreeBytes();
  auto memory = HotMemory::Reserve(0, 4096 * kMiB);
  ASSERT_TRUE(memory.ok()) << memory.status();
  unsigned char* const address = (*memory)->data();
  EXPECT_GT(FreeBytes(), before - 64 * kMiB);  // addresses alone take nothing
  ASSERT_TRUE((*memory)->Resize(1000 * kMiB).ok());
  EXPECT_EQ((*memory)->bytes(), 1000 * kMiB);
  EXPECT_LE(FreeBytes(), before - 1000 * kMiB);
  for (int64_t at = 0; at < 1000; ++at) {
    ASSERT_EQ(cudaMemset(address + at * kMiB, static_cast<int>(at % 251), kMiB), cudaSuccess);
  }
  const auto expect_front = [&](int64_t mib) {
    std::vector<unsigned char> got(kMiB);
    for (int64_t at = 0; at < mib; at += 13) {
      ASSERT_EQ(cudaMemcpy(got.data(), address + at * kMiB, kMiB, cudaMemcpyDeviceToHost),
                cudaSuccess);
      EXPECT_TRUE(std::all_of(got.begin(), got.end(), [&](int b) { return b == at % 251; })) << at;
    }
  };
  const int64_t said = (*memory)->SizeAfter(300 * kMiB);
  EXPECT_GE(said, 300 * kMiB);
  EXPECT_LE(said, 364 * kMiB);
  ASSERT_TRUE((*memory)->Resize(300 * kMiB).ok());
  EXPECT_EQ((*memory)->bytes(), said);
  EXPECT_GE(FreeBytes(), before - said - 64 * kMiB);
  expect_front(300);
  ASSERT_TRUE((*memory)->Resize(1500 * kMiB).ok());
  EXPECT_EQ((*memory)->data(), address);
  EXPECT_LE(FreeBytes(), before - 1500 * kMiB);
  ASSERT_EQ(cudaMemset(address + 1499 * kMiB, 1, kMiB), cudaSuccess);
  expect_front(300);
  ASSERT_TRUE((*memory)->Resize(0).ok());
  EXPECT_GE(FreeBytes(), before - 64 * kMiB);
}

TEST_F(CudaHotMemoryTest, AShortDeviceIsNamedWithBytesAndARemedy) {
  size_t free = 0, total = 0;
  ASSERT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  const auto all = static_cast<int64_t>(total);
  auto memory = HotMemory::Reserve(0, 2 * all);
  ASSERT_TRUE(memory.ok()) << memory.status();
  const absl::Status shortage = (*memory)->Resize(all);
  EXPECT_EQ(shortage.code(), absl::StatusCode::kResourceExhausted) << shortage;
  EXPECT_THAT(std::string(shortage.message()), HasSubstr("the hot pool needs "));
  EXPECT_THAT(std::string(shortage.message()), HasSubstr(" are free; lower the budget"));
  EXPECT_EQ(ExitCodeOf(shortage), ExitCode::kShortage);
  EXPECT_GT((*memory)->bytes(), static_cast<int64_t>(free) / 2);  // what could be had
  ASSERT_TRUE((*memory)->Resize(0).ok());
  EXPECT_GE(FreeBytes(), static_cast<int64_t>(free) - 64 * kMiB);
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
}

class CudaBudgetTest : public testing::Test {
 protected:
  void SetUp() override {
    ISOTHERM_SKIP_WITHOUT_DEVICE();
    const std::string path = testing::TempDir() + "/budget-integer.gguf";
    ASSERT_TRUE(model_.Write(path, DType::kF16).ok());
    harness_ = std::make_unique<DeviceHarness>(path);
    prompt_ = model_.Prompts(17, 1)[0];
    golden_ = model_.Golden(prompt_, 40);
    const BundleLayout& layout = harness_->model().bundle_layout();
    all_bytes_ = layout.layer_bytes() * layout.num_layers;
  }
  // The first `share` of each layer is hot, under a budget for no more than that.
  PlacementPlan Plan(int64_t epoch, double share) {
    const BundleLayout& layout = harness_->model().bundle_layout();
    PlacementPlan plan{.epoch = epoch};
    for (int64_t l = 0; l < layout.num_layers; ++l) {
      LayerPlacement layer{.num_neurons = layout.num_neurons};
      layer.hot.assign(static_cast<size_t>((layout.num_neurons + 63) / 64), 0);
      layer.num_hot = static_cast<int64_t>(share * static_cast<double>(layout.num_neurons));
      for (int64_t n = 0; n < layer.num_hot; ++n)
        layer.hot[static_cast<size_t>(n / 64)] |= uint64_t{1} << (n % 64);
      plan.budget_bytes += layer.num_hot * layout.bundle_bytes;
      plan.layers.push_back(std::move(layer));
    }
    return plan;
  }
  int64_t Driver() {
    const absl::StatusOr<int64_t> used = UsedDeviceMemory(0);
    EXPECT_TRUE(used.ok()) << used.status();
    return used.value_or(-1);
  }
  void ExpectGolden() { EXPECT_EQ(harness_->Greedy(prompt_, golden_.size()), golden_); }
  CudaDevice& device() { return harness_->device(); }

  // 8 layers of 4096 neurons of 768 bytes: 24 MiB, of which the driver gives 2 at a time.
  reference::IntegerModel model_{{.model_dim = 128, .ffn_dim = 4096, .num_layers = 8, .seed = 12}};
  std::unique_ptr<DeviceHarness> harness_;
  std::vector<int32_t> prompt_, golden_;
  int64_t all_bytes_ = 0;
};

TEST_F(CudaBudgetTest, TheDriversFigureFollowsTheBudget) {
  harness_->UsePlan(Plan(1, 1.0), true);
  ExpectGolden();
  const int64_t full = Driver();
  EXPECT_GE(device().Describe().memory.hot_pool, all_bytes_);
  harness_->UsePlan(Plan(2, 0.2), true);
  ASSERT_TRUE(device().Retire(1).ok());
  const int64_t small = Driver();
  EXPECT_LE(small, full - all_bytes_ * 6 / 10);
  const DeviceInfo info = device().Describe();
  EXPECT_NEAR(static_cast<double>(info.memory.process), static_cast<double>(small), 4.0 * kMiB);
  EXPECT_LE(info.memory.hot_pool, all_bytes_ * 3 / 10 + 2 * kMiB);
  EXPECT_EQ(info.hot_capacity_bytes, all_bytes_);  // --vram-budget still allows it
  ExpectGolden();
  harness_->UsePlan(Plan(3, 1.0), true);
  ASSERT_TRUE(device().Retire(2).ok());
  EXPECT_GE(Driver(), small + all_bytes_ * 6 / 10);
  EXPECT_LE(Driver(), full + 4 * kMiB);
  EXPECT_NEAR(static_cast<double>(device().Describe().memory.process),
              static_cast<double>(Driver()), 4.0 * kMiB);
  ExpectGolden();
  harness_->UsePlan(Plan(4, 0.0), true);
  ASSERT_TRUE(device().Retire(3).ok());
  EXPECT_EQ(device().Describe().memory.hot_pool, 0);
  ExpectGolden();
}

TEST_F(CudaBudgetTest, DecodeGoesOnThroughChangesAndKeepsItsTokens) {
  harness_->UsePlan(Plan(1, 0.5), true);
  ExpectGolden();
  std::atomic<int64_t> live = 1, steps = 0;
  std::atomic<bool> stop = false;
  // The harness names the live epoch; here the steps do, as a gateway's would.
  std::thread changes([&] {
    constexpr double kShares[] = {1.0, 0.1, 0.7, 0.0, 0.9, 0.05};
    for (int64_t epoch = 2; !stop; ++epoch) {
      const absl::Status prepared = device().Prepare(
          Plan(epoch, kShares[epoch % 6]), epoch % 2 == 0 ? &harness_->neurons() : nullptr, {});
      EXPECT_TRUE(prepared.ok()) << prepared;
      const int64_t old = live.exchange(epoch), seen = steps;
      // A step that began before names the old one.
      while (!stop && steps < seen + 2) std::this_thread::yield();
      if (stop) break;
      const absl::Status retired = device().Retire(old);
      EXPECT_TRUE(retired.ok()) << retired;
    }
  });
  std::vector<int32_t> pages(16);
  std::iota(pages.begin(), pages.end(), 0);
  int64_t step_id = 1000;
  // Until budgets have changed often enough.
  for (int round = 0; round < 200 && live < 40 && !HasFailure(); ++round) {
    SamplingState greedy({.params = {.temperature = 0}});
    std::vector<TokenId> out;
    while (out.size() < golden_.size() && !HasFailure()) {
      std::vector<DeviceRow> rows;
      const std::vector<int32_t> ids = out.empty() ? prompt_ : std::vector<int32_t>{out.back()};
      const size_t first = out.empty() ? 0 : prompt_.size() + out.size() - 1;
      for (size_t i = 0; i < ids.size(); ++i) {
        rows.push_back({.token = ids[i],
                        .position = static_cast<int32_t>(first + i),
                        .pages = pages,
                        .sampling = i + 1 == ids.size() ? &greedy : nullptr});
      }
      DeviceOutput output;
      const absl::Status status =
          device().RunStep({.step_id = step_id++,
                            .epoch = live,
                            .deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1),
                            .rows = rows},
                           {.arena = &harness_->neurons()}, &output);
      EXPECT_TRUE(status.ok()) << status;
      ++steps;
      if (!status.ok()) break;
      EXPECT_EQ(output.owed_hash, output.work_hash);
      out.push_back(output.samples[0].token);
    }
    EXPECT_EQ(out, golden_) << "round " << round;
  }
  stop = true;
  changes.join();
  EXPECT_GE(live, 40);
}

TEST_F(CudaBudgetTest, GrowthThatTheDeviceDoesNotGiveLeavesDecodeAsItIs) {
  harness_->UsePlan(Plan(1, 1.0), true);
  ExpectGolden();
  harness_->UsePlan(Plan(2, 0.1), true);
  ASSERT_TRUE(device().Retire(1).ok());
  ExpectGolden();
  const int64_t pool = device().Describe().memory.hot_pool;
  {
    const HeldMemory others;
    const absl::Status refused = device().Prepare(Plan(3, 1.0), &harness_->neurons(), {});
    EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted) << refused;
    EXPECT_THAT(std::string(refused.message()), HasSubstr("the hot pool needs "));
    EXPECT_THAT(std::string(refused.message()), HasSubstr(" are free; lower the budget"));
    EXPECT_FALSE(device().Has(3));
    EXPECT_FALSE(device().Lost());
    EXPECT_EQ(device().Describe().memory.hot_pool, pool);
    ExpectGolden();
  }
  harness_->UsePlan(Plan(3, 1.0), true);
  ASSERT_TRUE(device().Retire(2).ok());
  ExpectGolden();
}

}  // namespace
}  // namespace isotherm::gpu
