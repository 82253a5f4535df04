#include "placement_service/telemetry/traffic_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "tests/fakes/fake_clock.h"

namespace isotherm {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::ElementsAre;

constexpr int64_t kModelNeurons = 4;

class TrafficModelTest : public testing::Test {
 protected:
  TrafficModelTest() {
    traffic_.SetModel(Shape(), std::nullopt);
    traffic_.SetWorkers("gpu-1", "cpu-1");
    clock_.Advance(seconds(10));
  }
  static ModelShape Shape() {
    return {.digest = "model", .num_layers = 2, .num_neurons = kModelNeurons, .bundle_bytes = 30};
  }
  TelemetryReport Report(const std::string& instance, int64_t sequence, uint64_t tokens = 10) {
    TelemetryReport report{.instance_id = instance,
                           .model_digest = "model",
                           .sequence = sequence,
                           .interval_us = 1'000'000,
                           .epoch = 3,
                           .steps = tokens,
                           .num_neurons = kModelNeurons};
    report.layers.resize(2);
    for (LayerTelemetry& layer : report.layers) {
      layer.counts.tokens = tokens;
      layer.fired.assign(kModelNeurons, static_cast<uint32_t>(tokens / 2));
      if (instance[0] == 'g') layer.predicted.assign(kModelNeurons, static_cast<uint32_t>(tokens));
    }
    return report;
  }
  absl::StatusCode Accept(const TelemetryReport& report) {
    clock_.Advance(milliseconds(500));
    return traffic_.Accept(report).code();
  }
  static PlacementPlan Plan(int64_t epoch, uint64_t hot0, uint64_t hot1) {
    PlacementPlan plan{.epoch = epoch, .objective = 0.5};
    plan.layers = {{.hot = {hot0}, .num_neurons = kModelNeurons},
                   {.hot = {hot1}, .num_neurons = kModelNeurons}};
    return plan;
  }

  FakeClock clock_;
  TrafficModel traffic_{TrafficOptions(), clock_};
};

TEST_F(TrafficModelTest, LostAndDoubledReportsAreSeen) {
  using enum absl::StatusCode;
  EXPECT_EQ(Accept(Report("gpu-1", 1)), kOk);
  EXPECT_EQ(Accept(Report("gpu-1", 1)), kAlreadyExists);
  EXPECT_EQ(Accept(Report("gpu-1", 2)), kOk);
  EXPECT_EQ(Accept(Report("gpu-1", 5)), kOk);             // 3 and 4 are lost
  EXPECT_EQ(Accept(Report("gpu-1", 4)), kAlreadyExists);  // late
  EXPECT_EQ(Accept(Report("cpu-1", 1)), kOk);             // a count of its own
  const TrafficModel::Counts counts = traffic_.counts();
  EXPECT_EQ(counts.accepted, 4);
  EXPECT_EQ(counts.dropped, 2);
  EXPECT_EQ(counts.doubled, 2);
  EXPECT_EQ(counts.lost, 2);
  EXPECT_NEAR(traffic_.freshness().total_tokens, 30, 1e-9);  // nothing counted twice
}

TEST_F(TrafficModelTest, OnlyTheWorkersThatServeAreHeard) {
  using enum absl::StatusCode;
  EXPECT_EQ(Accept(Report("gpu-2", 1)), kNotFound);
  TelemetryReport other = Report("gpu-1", 1);
  other.model_digest = "another";
  EXPECT_EQ(Accept(other), kNotFound);
  traffic_.SetWorkers("gpu-2", "cpu-1");  // it restarted
  EXPECT_EQ(Accept(Report("gpu-1", 1)), kNotFound);
  EXPECT_EQ(Accept(Report("gpu-2", 1)), kOk);
  traffic_.SetWorkers("", "");
  EXPECT_EQ(Accept(Report("", 1)), kNotFound);
}

TEST_F(TrafficModelTest, ImpossibleReportsAreDroppedAndChangeNothing) {
  using enum absl::StatusCode;
  TelemetryReport bad = Report("gpu-1", 1);
  bad.layers[0].predicted[1] = 1'000'000;
  EXPECT_EQ(Accept(bad), kInvalidArgument);
  bad = Report("gpu-1", 2);
  bad.layers[1].fired[0] = 1'000'000;
  EXPECT_EQ(Accept(bad), kInvalidArgument);
  bad = Report("gpu-1", 3);
  bad.layers.pop_back();
  EXPECT_EQ(Accept(bad), kInvalidArgument);
  bad = Report("gpu-1", 4);
  bad.num_neurons = 5;
  EXPECT_EQ(Accept(bad), kInvalidArgument);
  bad = Report("gpu-1", 5);
  bad.layers[0].counts.tokens = std::numeric_limits<uint64_t>::max();
  EXPECT_EQ(Accept(bad), kInvalidArgument);
  bad = Report("gpu-1", 6);
  bad.layers[0].counts.gpu_ns = std::numeric_limits<uint64_t>::max();
  EXPECT_EQ(Accept(bad), kInvalidArgument);
  bad = Report("cpu-1", 7);
  bad.layers[0].predicted.assign(kModelNeurons, 1);
  EXPECT_EQ(Accept(bad), kInvalidArgument);
  EXPECT_EQ(traffic_.counts().dropped, 7);
  EXPECT_EQ(traffic_.Estimate().tokens, 0);
  EXPECT_FALSE(traffic_.freshness().age.has_value());
  EXPECT_EQ(Accept(Report("gpu-1", 9)), kOk);
}

TEST_F(TrafficModelTest, AFloodIsDropped) {
  int accepted = 0;
  for (int i = 1; i <= 10'000; ++i) {
    clock_.Advance(milliseconds(1));
    accepted += traffic_.Accept(Report("gpu-1", i)).ok() ? 1 : 0;
  }
  EXPECT_GE(accepted, 50);  // five a second
  EXPECT_LE(accepted, 75);  // and a burst
  EXPECT_EQ(traffic_.counts().dropped, 10'000 - accepted);
  EXPECT_EQ(traffic_.counts().lost, 0);  // all of them came
}

TEST_F(TrafficModelTest, BothWorkersMakeOneProfile) {
  EXPECT_EQ(traffic_.Estimate().tokens, 0);
  Accept(Report("gpu-1", 1, 100));
  Accept(Report("cpu-1", 1, 100));
  const TrafficEstimate estimate = traffic_.Estimate();
  EXPECT_EQ(estimate.profile, "live");
  EXPECT_NEAR(estimate.tokens, 100, 1);
  EXPECT_NEAR(estimate.frequency[1][2], 1, 1e-3);
  // 10 bytes of the first row for every token; 20 for each firing, here or there: 50 + 50 of 100.
  EXPECT_NEAR(estimate.reads[0][0], 30, 0.1);
  EXPECT_GT(estimate.error[0][0], 0);
}

TEST_F(TrafficModelTest, AnotherModelStartsOverAndTheSameGoesOn) {
  traffic_.SetPrior(
      "chat", std::vector<std::vector<float>>(2, std::vector<float>(kModelNeurons, 0.5f)), {}, 0);
  EXPECT_EQ(traffic_.Estimate().profile, "chat");
  Accept(Report("gpu-1", 1, 100));
  EXPECT_EQ(traffic_.Estimate().profile, "chat + live");
  const StoredProfile stored = traffic_.Snapshot();
  EXPECT_NEAR(stored.total_tokens, 100, 1e-9);
  traffic_.SetModel(Shape(), std::nullopt);  // described again
  EXPECT_NEAR(traffic_.freshness().total_tokens, 100, 1e-9);

  // A restart goes on where it was, with the gap in the sequence seen.
  TrafficModel again(TrafficOptions(), clock_);
  again.SetModel(Shape(), stored);
  again.SetWorkers("gpu-1", "cpu-1");
  EXPECT_NEAR(again.Estimate().tokens, traffic_.Estimate().tokens, 1e-3);
  EXPECT_EQ(again.Estimate().frequency, traffic_.Estimate().frequency);
  EXPECT_EQ(again.Estimate().profile, "chat + live");
  EXPECT_EQ(again.Accept(Report("gpu-1", 1)).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(again.Accept(Report("gpu-1", 4)).ok());
  EXPECT_EQ(again.counts().lost, 2);

  // Another model's profile is not used.
  ModelShape other = Shape();
  other.digest = "other";
  again.SetModel(other, stored);
  EXPECT_EQ(again.Estimate().tokens, 0);
}

TEST_F(TrafficModelTest, MeasuresTheLivePlanOnItsOwnSteps) {
  traffic_.SetLive(Plan(3, 0b0011, 0b1111));
  TelemetryReport report = Report("gpu-1", 1, 100);
  report.layers[0].predicted = {100, 50, 50, 0};
  report.layers[1].predicted = {100, 0, 0, 0};
  for (LayerTelemetry& layer : report.layers) {
    layer.counts.timed_steps = 10;
    layer.counts.gpu_ns = 10 * 2'000;
    layer.counts.wait_ns = 10 * 1'000;
    layer.counts.merge_ns = 10 * 500;
  }
  Accept(report);
  TelemetryReport mixed = Report("gpu-1", 2, 100);
  mixed.epoch_changes = 1;
  Accept(mixed);
  TelemetryReport older = Report("gpu-1", 3, 100);
  older.epoch = 2;
  Accept(older);
  const Measurement measured = traffic_.Measured();
  EXPECT_EQ(measured.epoch, 3);
  EXPECT_NEAR(measured.tokens, 100, 1e-9);
  EXPECT_NEAR(measured.hit_share, (150.0 + 100) / 300, 1e-9);
  EXPECT_NEAR(measured.layers[0].hit_share, 0.75, 1e-9);
  EXPECT_NEAR(measured.layers[1].hit_share, 1, 1e-9);
  EXPECT_NEAR(measured.layers[0].gpu_us, 2, 1e-9);
  EXPECT_NEAR(measured.step_ns, 2 * 3'500, 1e-6);
  traffic_.SetLive(Plan(4, 0, 0));
  EXPECT_EQ(traffic_.Measured().tokens, 0);
}

TEST_F(TrafficModelTest, DriftMakesWhatWasLearntCountLittle) {
  int64_t sequence = 0;
  const auto feed = [&](std::vector<uint32_t> predicted, int reports) {
    for (int i = 0; i < reports; ++i) {
      TelemetryReport report = Report("gpu-1", ++sequence, 40);
      for (LayerTelemetry& layer : report.layers) layer.predicted = predicted;
      Accept(report);
    }
  };
  feed({40, 40, 20, 20}, 5);
  traffic_.SetLive(Plan(3, 0b0011, 0b0011));
  feed({40, 40, 20, 20}, 95);
  EXPECT_FALSE(traffic_.TakeDrift().alarm);
  EXPECT_GT(traffic_.Estimate().tokens, 3'000);
  feed({20, 20, 40, 40}, 8);
  const TrafficModel::Drift drift = traffic_.TakeDrift();
  EXPECT_TRUE(drift.alarm);
  EXPECT_NEAR(drift.usual, 2.0 / 3, 0.05);
  EXPECT_LT(drift.recent, 0.55);
  EXPECT_FALSE(traffic_.TakeDrift().alarm);
  EXPECT_LT(traffic_.Estimate().tokens, 500);
}

TEST_F(TrafficModelTest, LearnsFromNothingForItsFirstTokens) {
  EXPECT_TRUE(traffic_.freshness().learning);
  traffic_.SetLive(Plan(3, 0b0011, 0b0011));
  int64_t sequence = 0;
  const auto feed = [&](std::vector<uint32_t> predicted, int reports) {
    for (int i = 0; i < reports; ++i) {
      TelemetryReport report = Report("gpu-1", ++sequence, 100);
      for (LayerTelemetry& layer : report.layers) layer.predicted = predicted;
      Accept(report);
    }
  };
  feed({100, 100, 50, 50}, 10);
  EXPECT_EQ(traffic_.Estimate().learning_until, 4'000);
  // No alarm yet: what a plan promised rests on little.
  feed({50, 50, 100, 100}, 20);
  EXPECT_FALSE(traffic_.TakeDrift().alarm);
  // A restart goes on learning.
  TrafficModel again(TrafficOptions(), clock_);
  again.SetModel(Shape(), traffic_.Snapshot());
  EXPECT_TRUE(again.freshness().learning);
  // With a prior nothing is learnt from nothing, and so it stays when that is stored.
  again.SetPrior(
      "chat", std::vector<std::vector<float>>(2, std::vector<float>(kModelNeurons, 0.5f)), {}, 0);
  EXPECT_FALSE(again.freshness().learning);
  TrafficModel third(TrafficOptions(), clock_);
  third.SetModel(Shape(), again.Snapshot());
  EXPECT_FALSE(third.freshness().learning);

  feed({50, 50, 100, 100}, 10);
  EXPECT_FALSE(traffic_.freshness().learning);
  EXPECT_EQ(traffic_.Estimate().learning_until, 0);
  // From now on the live plan is watched, though it is the one from before.
  feed({50, 50, 100, 100}, 20);
  EXPECT_FALSE(traffic_.TakeDrift().alarm);
  feed({20, 20, 100, 100}, 5);
  EXPECT_TRUE(traffic_.TakeDrift().alarm);
}

TEST_F(TrafficModelTest, KnowsHowOldItsReportsAre) {
  EXPECT_FALSE(traffic_.freshness().age.has_value());
  Accept(Report("gpu-1", 1));
  clock_.Advance(seconds(3));
  TelemetryReport idle = Report("gpu-1", 2);
  idle.layers.clear();
  idle.steps = 0;
  Accept(idle);
  clock_.Advance(seconds(1));
  const TrafficModel::Freshness fresh = traffic_.freshness();
  EXPECT_EQ(*fresh.age, seconds(1));
  EXPECT_EQ(*fresh.work_age, milliseconds(4'500));
}

}  // namespace
}  // namespace isotherm
