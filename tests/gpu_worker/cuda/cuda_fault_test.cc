// A GPU that fails: an error that is final, a kernel that does not end, memory that is not there.
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <numeric>
#include <thread>

#include "common/base/exit_code.h"
#include "common/shm/slot_client.h"
#include "gmock/gmock.h"
#include "gpu_worker/cuda/cuda_device.h"
#include "gpu_worker/engine/slot_cold_link.h"
#include "gpu_worker/host/owned_neurons.h"
#include "gtest/gtest.h"
#include "tests/gpu_worker/cuda/fault_kernels.h"
#include "tests/reference/integer_model.h"

namespace isotherm::gpu {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::HasSubstr;

// Layer slots that nobody serves.
class SilentColdSide {
 public:
  explicit SilentColdSide(const BundleLayout& layout) {
    auto region = shm::ControlRegion::Create(
        {.shape = {.max_rows = 8,
                   .model_dim = static_cast<int32_t>(layout.model_dim),
                   .num_neurons = static_cast<int32_t>(layout.num_neurons),
                   .num_layers = static_cast<int32_t>(layout.num_layers)},
         .nonce = shm::RandomNonce()},
        shm::MemoryLimits{});
    EXPECT_TRUE(region.ok()) << region.status();
    served_ = *std::move(region);
    used_ = served_->GpuViewOfSameMapping();
    auto client = shm::SlotClient::Create(*used_);
    EXPECT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    link_ = std::make_unique<SlotColdLink>(*client_, layout);
  }
  ColdLink* link() { return link_.get(); }
  void Die() { client_->Abort(); }

 private:
  std::unique_ptr<shm::ControlRegion> served_, used_;
  std::unique_ptr<shm::SlotClient> client_;
  std::unique_ptr<SlotColdLink> link_;
};

class CudaFaultTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!HasCudaDevice()) GTEST_SKIP() << "no CUDA GPU on this machine";
    testing::GTEST_FLAG(death_test_style) = "threadsafe";  // its context is the child's own
    UseModel(reference::IntegerModel({.seed = 9}));
    std::iota(pages_.begin(), pages_.end(), 0);
  }
  void UseModel(const reference::IntegerModel& integers) {
    const std::string path =
        testing::TempDir() + "/fault-" + std::to_string(::getpid()) + "-integer.gguf";
    ASSERT_TRUE(integers.Write(path, DType::kF16).ok());
    auto model = ModelFile::Open(path);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    ::unlink(path.c_str());
    auto neurons = OwnedNeurons::Load(*model_);
    ASSERT_TRUE(neurons.ok()) << neurons.status();
    neurons_ = *std::move(neurons);
  }
  absl::StatusOr<std::unique_ptr<CudaDevice>> Make(CudaDeviceOptions options = {}) {
    options.kv_pages = 64;
    options.max_rows = 32;
    return CudaDevice::Create(*model_, options);
  }
  // One row in a step that ends by then.
  absl::Status Step(CudaDevice& device, milliseconds limit, ColdLink* link = nullptr) {
    const std::vector<DeviceRow> rows = {{.token = 5, .position = 0, .pages = pages_}};
    return device.RunStep(
        {.step_id = ++step_id_, .deadline = steady_clock::now() + limit, .rows = rows},
        {.link = link, .arena = neurons_.get()}, &output_);
  }

  // A device that posts every cold neuron to a cpu side that never answers.
  struct Unanswered {
    std::unique_ptr<CudaDevice> device;
    SilentColdSide cold;
    std::shared_ptr<void> mapping;
  };
  std::unique_ptr<Unanswered> MakeUnanswered(std::function<void(cudaStream_t)> before_step = {}) {
    auto made = Make({.streamed_share = 0, .before_step = std::move(before_step)});
    EXPECT_TRUE(made.ok()) << made.status();
    if (!made.ok()) return nullptr;
    std::unique_ptr<Unanswered> out(
        new Unanswered{*std::move(made), SilentColdSide(model_->bundle_layout()), nullptr});
    Remap(*out, out->cold.link());
    return out;
  }
  // Memory is pinned once at a time.
  void Remap(Unanswered& side, ColdLink* link) {
    side.mapping.reset();
    auto mapping = side.device->Map({.link = link, .arena = neurons_.get()});
    EXPECT_TRUE(mapping.ok()) << mapping.status();
    if (mapping.ok()) side.mapping = *std::move(mapping);
  }

  static int64_t FreeBytes() {
    size_t free = 0, total = 0;
    EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
    return static_cast<int64_t>(free);
  }

  std::unique_ptr<ModelFile> model_;
  std::unique_ptr<OwnedNeurons> neurons_;
  std::vector<int32_t> pages_ = std::vector<int32_t>(16);
  DeviceOutput output_;
  int64_t step_id_ = 0;
};

TEST_F(CudaFaultTest, ABadAddressIsFinal) {
  const auto run = [this] {
    bool broken = false;
    auto made = Make({.before_step = [&](cudaStream_t stream) {
      if (broken) LaunchBadWrite(stream);
    }});
    if (!made.ok()) ::_exit(1);
    CudaDevice& device = **made;
    auto mapping = device.Map({.arena = neurons_.get()});
    if (!mapping.ok() || !Step(device, milliseconds(20'000)).ok() || device.Lost()) ::_exit(2);
    broken = true;
    const absl::Status first = Step(device, milliseconds(20'000));
    if (!absl::IsInternal(first) || !device.Lost()) ::_exit(3);
    std::fprintf(stderr, "%s\n", std::string(first.message()).c_str());
    broken = false;
    // Nothing works any more, nor says that the memory was short.
    if (!absl::IsInternal(Step(device, milliseconds(20'000))) || !device.Lost()) ::_exit(4);
    if (Make().ok()) ::_exit(5);
    ::_exit(70);
  };
  EXPECT_EXIT(run(), testing::ExitedWithCode(70), "cudaErrorIllegalAddress");
}

TEST_F(CudaFaultTest, AKernelThatDoesNotEndEndsTheProcessSoonAfterTheDeadline) {
  const auto run = [this] {
    bool hangs = false;
    auto made = Make({.before_step = [&](cudaStream_t stream) {
      if (hangs) LaunchSpin(20, stream);
    }});
    if (!made.ok()) ::_exit(1);
    auto mapping = (*made)->Map({.arena = neurons_.get()});
    if (!mapping.ok() || !Step(**made, milliseconds(20'000)).ok()) ::_exit(2);
    hangs = true;
    Step(**made, milliseconds(100)).IgnoreError();
    ::_exit(3);  // it came back
  };
  EXPECT_EXIT(run(), testing::ExitedWithCode(70), "did not finish a step by its deadline");
  // The driver takes the kernel and the memory away, and the next process finds a GPU that works.
  auto made = Make();
  ASSERT_TRUE(made.ok()) << made.status();
  auto mapping = (*made)->Map({.arena = neurons_.get()});
  ASSERT_TRUE(mapping.ok()) << mapping.status();
  EXPECT_TRUE(Step(**made, milliseconds(20'000)).ok());
}

// The kernel that waits for the cpu side sees the deadline by itself: the process lives on.
TEST_F(CudaFaultTest, ACpuSideThatNeverAnswersEndsTheStepAtItsDeadline) {
  const auto side = MakeUnanswered();
  ASSERT_NE(side, nullptr);
  const auto start = steady_clock::now();
  const absl::Status late = Step(*side->device, milliseconds(150), side->cold.link());
  EXPECT_EQ(late.code(), absl::StatusCode::kDeadlineExceeded) << late;
  EXPECT_GE(steady_clock::now() - start, milliseconds(140));
  EXPECT_FALSE(side->device->Lost());
  Remap(*side, nullptr);
  EXPECT_TRUE(Step(*side->device, milliseconds(20'000)).ok());
}

TEST_F(CudaFaultTest, ACpuSideThatIsLostFreesAStepThatWaits) {
  std::atomic<bool> started = false;
  const auto side = MakeUnanswered([&](cudaStream_t) { started = true; });
  ASSERT_NE(side, nullptr);
  std::thread killer([&] {
    while (!started) std::this_thread::yield();
    side->cold.Die();
  });
  const absl::Status status = Step(*side->device, milliseconds(60'000), side->cold.link());
  killer.join();
  EXPECT_TRUE(status.ok()) << status;  // computed anew, from the arena
  EXPECT_TRUE(output_.cpu_recomputed);
  EXPECT_EQ(output_.owed_hash, output_.work_hash);
}

// Two steps are queued, and the first waits for a cpu side that never answers, or that is lost
// once both are.
TEST_F(CudaFaultTest, AStepThatFailsTakesTheOneBegunBehindItAlong) {
  for (const bool dies : {false, true}) {
    std::atomic<int> launched = 0;
    const auto side = MakeUnanswered([&](cudaStream_t) { ++launched; });
    ASSERT_NE(side, nullptr);
    SamplingState greedy({.params = {.temperature = 0}});
    const std::vector<DeviceRow> rows = {
        {.token = 1, .position = 0, .pages = pages_, .sampling = &greedy}};
    const std::vector<DeviceRow> then = {
        {.token = kSampledToken, .position = 1, .pages = pages_, .sampling = &greedy}};
    const auto start = steady_clock::now();
    const milliseconds limit(dies ? 10'000 : 150);
    const DeviceBatch next{.step_id = step_id_ + 2, .deadline = start + limit, .rows = then};
    std::atomic<bool> over = false;
    std::thread killer([&] {
      while (!over && launched < 2) std::this_thread::yield();
      if (dies) side->cold.Die();
    });
    const absl::Status status = side->device->RunStep(
        {.step_id = ++step_id_, .deadline = start + limit, .rows = rows, .next = &next},
        {.link = side->cold.link(), .arena = neurons_.get()}, &output_);
    over = true;
    killer.join();
    EXPECT_LT(steady_clock::now() - start, milliseconds(450));
    EXPECT_FALSE(output_.next_begun);
    EXPECT_EQ(launched, dies ? 3 : 2);  // the lost one once more, from the arena
    if (dies) {
      EXPECT_TRUE(status.ok()) << status;
      EXPECT_TRUE(output_.cpu_recomputed);
    } else {
      EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    }
    Remap(*side, nullptr);
    EXPECT_TRUE(Step(*side->device, milliseconds(20'000)).ok());
  }
}

// Two steps are queued, and the second will wait for a cpu side that never answers. A smaller
// budget comes in between them, and the second runs behind it.
TEST_F(CudaFaultTest, ABudgetChangeWaitsForTheRunningStepAndNotForTheOneBegunBehindIt) {
  // 24 MiB of neurons, which the driver gives and takes in pieces of 2.
  UseModel(
      reference::IntegerModel({.model_dim = 128, .ffn_dim = 4096, .num_layers = 8, .seed = 12}));
  std::atomic<int> launched = 0;
  const auto side = MakeUnanswered([&](cudaStream_t stream) {
    if (++launched == 1) LaunchSpin(0.3, stream);
  });
  ASSERT_NE(side, nullptr);
  const BundleLayout& layout = model_->bundle_layout();
  PlacementPlan nothing_hot{.epoch = 1};
  for (int64_t l = 0; l < layout.num_layers; ++l) {
    nothing_hot.layers.push_back({.num_neurons = layout.num_neurons});
    nothing_hot.layers.back().hot.assign(static_cast<size_t>((layout.num_neurons + 63) / 64), 0);
  }
  SamplingState greedy({.params = {.temperature = 0}});
  std::vector<DeviceRow> rows = {{.token = 1, .position = 0, .pages = pages_, .sampling = &greedy}};
  std::vector<DeviceRow> then = {
      {.token = kSampledToken, .position = 1, .pages = pages_, .sampling = &greedy}};
  // The first step asks nobody.
  const std::vector<LayerRange> alone = {
      {.first = 0, .last = static_cast<int32_t>(layout.num_layers), .mode = LayerMode::kGpuOnly}};
  const ColdSide cold{.link = side->cold.link(), .arena = neurons_.get()};
  const milliseconds limit(2500);
  const DeviceBatch next{.step_id = 2, .deadline = steady_clock::now() + limit, .rows = then};
  std::atomic<bool> first_over = false;
  steady_clock::time_point changed;
  std::thread operator_thread([&] {
    while (launched < 2 && !first_over) std::this_thread::yield();
    const absl::Status status = side->device->Prepare(nothing_hot, neurons_.get(), {});
    EXPECT_TRUE(status.ok()) << status;
    changed = steady_clock::now();
  });
  const absl::Status first = side->device->RunStep({.step_id = 1,
                                                    .deadline = steady_clock::now() + limit,
                                                    .layers = alone,
                                                    .rows = rows,
                                                    .next = &next},
                                                   cold, &output_);
  first_over = true;
  EXPECT_TRUE(first.ok()) << first;
  EXPECT_TRUE(output_.next_begun);
  if (!output_.samples.empty()) then[0].token = output_.samples[0].token;
  const absl::Status second = side->device->RunStep(
      {.step_id = 2, .deadline = steady_clock::now() + limit, .rows = then}, cold, &output_);
  const auto second_over = steady_clock::now();
  operator_thread.join();
  EXPECT_EQ(second.code(), absl::StatusCode::kDeadlineExceeded) << second;
  EXPECT_LT(changed, second_over - milliseconds(1000));
  Remap(*side, nullptr);
  EXPECT_TRUE(Step(*side->device, milliseconds(20'000)).ok());
}

TEST_F(CudaFaultTest, AProcessKilledWhileAKernelSpinsLeavesTheGpuToTheNext) {
  ASSERT_TRUE(Make().ok());
  const int64_t before = FreeBytes();
  const auto run = [this] {
    bool killed = false;
    auto made = Make({.before_step = [&](cudaStream_t stream) {
      if (!killed) return;
      LaunchSpin(20, stream);
      while (cudaStreamQuery(stream) != cudaErrorNotReady) {
      }
      ::kill(::getpid(), SIGKILL);
    }});
    if (!made.ok()) ::_exit(1);
    auto mapping = (*made)->Map({.arena = neurons_.get()});
    if (!mapping.ok() || !Step(**made, milliseconds(20'000)).ok()) ::_exit(2);
    killed = true;
    Step(**made, milliseconds(20'000)).IgnoreError();
  };
  EXPECT_EXIT(run(), testing::KilledBySignal(SIGKILL), "");
  // Whoever starts the next one saw that one's end, and with it went its memory.
  EXPECT_GE(FreeBytes(), before - (int64_t{64} << 20));
  auto made = Make();
  ASSERT_TRUE(made.ok()) << made.status();
  auto mapping = (*made)->Map({.arena = neurons_.get()});
  ASSERT_TRUE(mapping.ok()) << mapping.status();
  EXPECT_TRUE(Step(**made, milliseconds(20'000)).ok());
}

TEST_F(CudaFaultTest, AKernelThatIsSlowIsWaitedFor) {
  auto made = Make({.before_step = [](cudaStream_t stream) { LaunchSpin(0.05, stream); }});
  ASSERT_TRUE(made.ok()) << made.status();
  auto mapping = (*made)->Map({.arena = neurons_.get()});
  ASSERT_TRUE(mapping.ok()) << mapping.status();
  EXPECT_TRUE(Step(**made, milliseconds(20'000)).ok());
  EXPECT_FALSE((*made)->Lost());
}

TEST_F(CudaFaultTest, EachAllocationThatFailsIsNamedAndLeavesNothingBehind) {
  ASSERT_TRUE(Make().ok());  // what the driver keeps it has now
  const int64_t before = FreeBytes();
  int64_t n = 0;
  for (bool made = false; !made && n < 1000; ++n) {
    fail_nth_allocation = n;
    const auto device = Make();
    made = device.ok();
    fail_nth_allocation = -1;
    if (made) break;
    const std::string message(device.status().message());
    EXPECT_EQ(device.status().code(), absl::StatusCode::kResourceExhausted) << message;
    EXPECT_EQ(ExitCodeOf(device.status()), ExitCode::kShortage) << message;
    EXPECT_THAT(message, HasSubstr(" needs "));
    EXPECT_THAT(message, testing::AnyOf(HasSubstr(" are free; lower "), HasSubstr("; end what")));
    EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
    EXPECT_GE(FreeBytes(), before - (int64_t{32} << 20)) << message;
  }
  EXPECT_GT(n, 20);
  EXPECT_LT(n, 1000);
}

TEST_F(CudaFaultTest, BudgetsThatCannotBeHadSayWhatIsNeeded) {
  auto device = Make({.vram_budget = int64_t{64} << 20});
  EXPECT_EQ(ExitCodeOf(device.status()), ExitCode::kCannotFit) << device.status();
  EXPECT_THAT(std::string(device.status().message()), HasSubstr("--vram-budget 67.1 MB is below"));
  size_t free = 0, total = 0;
  ASSERT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  device = Make({.vram_budget = static_cast<int64_t>(total) + (int64_t{1} << 30)});
  EXPECT_EQ(ExitCodeOf(device.status()), ExitCode::kCannotFit) << device.status();
  EXPECT_THAT(std::string(device.status().message()), HasSubstr(" that the GPU has; lower it"));
  // Another program holds nearly all: short now, perhaps not later.
  void* held = nullptr;
  ASSERT_EQ(cudaMalloc(&held, free - (size_t{300} << 20)), cudaSuccess);
  device = Make();
  EXPECT_EQ(ExitCodeOf(device.status()), ExitCode::kShortage) << device.status();
  EXPECT_THAT(std::string(device.status().message()), HasSubstr(" are free; lower --context"));
  cudaFree(held);
  EXPECT_TRUE(Make().ok());
}

}  // namespace
}  // namespace isotherm::gpu
