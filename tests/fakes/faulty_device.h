#pragma once

#include <atomic>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <system_error>
#include <utility>

#include "gpu_worker/device.h"
#include "gpu_worker/engine/device_wait.h"

namespace isotherm::gpu {

// A device that fails as a GPU does when a test asks for it: before each step with rows it looks
// for the file `order`, takes it away and does what it says. (A step that only releases a finished
// request's sequences may still come when the test has the answer.)
//   lost  the step fails as after an illegal address, and so does every later one
//   hang  the step never ends
class FaultyDevice final : public Device {
 public:
  FaultyDevice(std::unique_ptr<Device> device, std::string order)
      : device_(std::move(device)), order_(std::move(order)) {}

  DeviceInfo Describe() const override { return device_->Describe(); }
  bool Lost() const override { return lost_; }
  absl::Status Prepare(const PlacementPlan& plan, const NeuronStore* source,
                       const std::function<void(int64_t, int64_t)>& progress) override {
    return device_->Prepare(plan, source, progress);
  }
  absl::Status Retire(int64_t epoch) override { return device_->Retire(epoch); }
  bool Has(int64_t epoch) const override { return device_->Has(epoch); }
  void SetShares(int64_t hot_capacity_bytes, int32_t kv_pages) override {
    device_->SetShares(hot_capacity_bytes, kv_pages);
  }
  absl::StatusOr<std::shared_ptr<void>> Map(const ColdSide& cold) override {
    return device_->Map(cold);
  }
  absl::Status RunStep(const DeviceBatch& batch, const ColdSide& cold,
                       DeviceOutput* output) override {
    const std::string order = batch.rows.empty() ? "" : TakeOrder();
    if (order == "lost") lost_ = true;
    if (order == "hang")
      AwaitDevice(
          TimePoint(), [] { return true; }, [] {});
    if (lost_) {
      return absl::InternalError(
          "a step: cudaErrorIllegalAddress, an illegal memory access was encountered");
    }
    return device_->RunStep(batch, cold, output);
  }
  absl::Status ReadCounters(NeuronCounters* counters) override {
    return device_->ReadCounters(counters);
  }

 private:
  std::string TakeOrder() const {
    std::ifstream file(order_);
    std::string order;
    if (!(file >> order)) return "";
    std::error_code ignored;
    std::filesystem::remove(order_, ignored);
    return order;
  }

  const std::unique_ptr<Device> device_;
  const std::string order_;
  std::atomic<bool> lost_ = false;
};

}  // namespace isotherm::gpu
