#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "common/base/error_reason.h"
#include "placement_service/plan/plan_publisher.h"
#include "tests/fakes/fake_prepare_worker.h"

namespace isotherm {

class ManualClock : public Clock {
 public:
  TimePoint Now() const override { return now_; }
  int64_t WallUs() const override { return wall_us_; }
  void Advance(std::chrono::milliseconds time) { now_ += time; }
  void SetWall(int64_t wall_us) { wall_us_ = wall_us; }

 private:
  TimePoint now_{std::chrono::hours(1)};
  int64_t wall_us_ = 1'000'000;
};

inline PlacementProfile Profile() {
  PlacementProfile profile{"chat", std::vector<std::vector<float>>(2, std::vector<float>(70))};
  for (size_t l = 0; l < 2; ++l) {
    for (size_t n = 0; n < 70; ++n) {
      profile.frequency[l][n] = static_cast<float>((n * 37 + l * 11) % 70) / 70;
    }
  }
  return profile;
}

class PlanPublisherTest : public ::testing::Test {
 protected:
  PlanPublisherTest() : gpu_({.name = "gpu_worker"}), cpu_({.name = "cpu_worker"}) {
    std::string pattern = ::testing::TempDir() + "/plan_publisher_XXXXXX";
    directory_ = ::mkdtemp(pattern.data());
  }
  ~PlanPublisherTest() override {
    publisher_.reset();
    store_.reset();
    std::filesystem::remove_all(directory_);
  }

  // A new process: the store is opened again.
  void Start(const std::string& vfs = "") {
    publisher_.reset();
    store_.reset();
    auto store = PlanStore::Open({directory_ + "/plans.sqlite", vfs});
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    traffic_ = std::make_unique<TrafficModel>(TrafficOptions(), clock_);
    auto publisher =
        PlanPublisher::Create(options_, *store_, gpu_, &cpu_, profile_, *traffic_, clock_);
    ASSERT_TRUE(publisher.ok()) << publisher.status();
    publisher_ = *std::move(publisher);
  }
  void Round() { ASSERT_TRUE(publisher_->RunOnce().ok()); }
  absl::StatusOr<PlanRecord> Rollback(RollbackParams params) {
    absl::StatusOr<PlanRecord> out = absl::UnknownError("not answered");
    publisher_->Rollback(std::move(params), [&](const auto& result) { out = result; });
    Round();
    return out;
  }
  absl::StatusOr<PlanRecord> SetBudget(BudgetParams params) {
    absl::StatusOr<PlanRecord> out = absl::UnknownError("not answered");
    publisher_->SetBudget(std::move(params), [&](const auto& result) { out = result; });
    Round();
    return out;
  }
  PlacementPlan Live() { return publisher_->Get(0, true)->plan; }
  std::string Reason(const absl::Status& status) {
    return ErrorReasonOf(status).value_or(ErrorReason{}).reason;
  }

  std::string directory_;
  ManualClock clock_;
  FakePrepareWorker gpu_, cpu_;
  PublisherOptions options_{.start_options = "auto"};
  PlacementProfile profile_ = Profile();
  std::unique_ptr<PlanStore> store_;
  std::unique_ptr<TrafficModel> traffic_;
  std::unique_ptr<PlanPublisher> publisher_;
};

}  // namespace isotherm
