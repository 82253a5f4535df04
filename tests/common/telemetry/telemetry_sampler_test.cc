#include "common/telemetry/telemetry_sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <vector>

namespace isotherm {
namespace {

// Takes reports, refuses them, or blocks until it is cancelled.
class FakeSink : public TelemetrySink {
 public:
  enum class Mode { kTake, kRefuse, kBlock };

  bool Send(const TelemetryReport& report) override {
    std::unique_lock lock(mu_);
    ++calls_;
    changed_.notify_all();
    if (mode_ == Mode::kBlock) changed_.wait(lock, [&] { return cancelled_; });
    if (mode_ != Mode::kTake || cancelled_) return false;
    taken_.push_back(report);
    return true;
  }
  void Cancel() override {
    std::lock_guard lock(mu_);
    cancelled_ = true;
    changed_.notify_all();
  }

  void SetMode(Mode mode) {
    std::lock_guard lock(mu_);
    mode_ = mode;
  }
  void WaitForCalls(int more) {
    std::unique_lock lock(mu_);
    const int wanted = calls_ + more;
    changed_.wait(lock, [&] { return calls_ >= wanted; });
  }
  std::vector<TelemetryReport> taken() {
    std::lock_guard lock(mu_);
    return taken_;
  }

 private:
  std::mutex mu_;
  std::condition_variable changed_;
  Mode mode_ = Mode::kTake;
  bool cancelled_ = false;
  int calls_ = 0;
  std::vector<TelemetryReport> taken_;
};

class TelemetrySamplerTest : public testing::Test {
 protected:
  std::unique_ptr<TelemetrySampler> Start() {
    auto sink = std::make_unique<FakeSink>();
    sink_ = sink.get();
    return std::make_unique<TelemetrySampler>(
        TelemetrySamplerOptions{"me", "model", std::chrono::milliseconds(1)},
        [this](NeuronCounters* out) {
          const uint64_t steps = ++steps_;
          *out = {.steps = steps,
                  .layers = {{.tokens = steps}},
                  .fired = {static_cast<uint32_t>(2 * steps)}};
          return absl::OkStatus();
        },
        std::move(sink));
  }

  std::atomic<uint64_t> steps_{0};
  FakeSink* sink_ = nullptr;
};

TEST_F(TelemetrySamplerTest, NothingIsLostWhileNobodyTakesReports) {
  auto sampler = Start();
  sink_->WaitForCalls(3);
  sink_->SetMode(FakeSink::Mode::kRefuse);
  sink_->WaitForCalls(5);
  sink_->SetMode(FakeSink::Mode::kTake);
  sink_->WaitForCalls(4);
  const std::vector<TelemetryReport> taken = sink_->taken();
  ASSERT_GE(taken.size(), 4u);
  uint64_t steps = 0, fired = 0;
  int64_t sequence = 0;
  uint64_t largest = 0;
  for (const TelemetryReport& report : taken) {
    EXPECT_EQ(report.sequence, ++sequence);  // what was refused took no number
    steps += report.steps;
    fired += report.layers[0].fired[0];
    largest = std::max(largest, report.steps);
    EXPECT_EQ(fired, 2 * steps);
  }
  EXPECT_GE(largest, 5u);  // the one after the refused ones has all of them
}

TEST_F(TelemetrySamplerTest, EndsAlthoughTheServiceDoesNotRead) {
  auto sampler = Start();
  sink_->SetMode(FakeSink::Mode::kBlock);
  sink_->WaitForCalls(1);
  sampler.reset();  // returns
}

TEST_F(TelemetrySamplerTest, ADeviceThatDoesNotCountIsAskedOnce) {
  std::atomic<int> asked{0};
  auto sink = std::make_unique<FakeSink>();
  FakeSink* const taken = sink.get();
  {
    TelemetrySampler sampler(
        {"me", "model", std::chrono::milliseconds(1)},
        [&](NeuronCounters*) {
          ++asked;
          return absl::UnimplementedError("no counters");
        },
        std::move(sink));
    while (asked == 0) std::this_thread::yield();
    EXPECT_TRUE(taken->taken().empty());
  }
  EXPECT_EQ(asked, 1);
}

}  // namespace
}  // namespace isotherm
