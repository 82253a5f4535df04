#include "placement_service/telemetry/cost_estimator.h"

#include <gtest/gtest.h>

namespace isotherm {
namespace {

constexpr uint64_t kSteps = 100;

// Layers that read 1000, 2000, .. bytes; what takes how long is the caller's.
template <typename Fill>
TelemetryReport Report(const Fill& fill) {
  TelemetryReport report{.steps = kSteps, .decode_steps = kSteps, .decode_rows = 2 * kSteps};
  for (uint64_t l = 1; l <= 4; ++l) {
    LayerTelemetry layer;
    layer.counts.timed_steps = kSteps;
    fill(l * 1000, layer.counts);
    report.layers.push_back(layer);
  }
  return report;
}

TelemetryReport GpuReport() {
  return Report([](uint64_t bytes, LayerCounters& c) {
    c.hot_bytes = kSteps * bytes;
    c.gpu_ns = kSteps * (3'000 + bytes / 2);
    c.cpu_ns = kSteps * 20'000;
    c.wait_ns = kSteps * (20'000 + 7'000 - 3'000 - bytes / 2);  // 7 us after the cpu was done
    c.merge_ns = kSteps * 1'000;
  });
}

TelemetryReport CpuReport() {
  return Report([](uint64_t bytes, LayerCounters& c) {
    c.timed_cold_bytes = kSteps * bytes;
    c.cpu_ns = kSteps * (5'000 + 2 * bytes);
  });
}

TEST(CostEstimatorTest, FindsWhatTheReportsWereMadeOf) {
  CostEstimator costs;
  EXPECT_FALSE(costs.known());
  EXPECT_EQ(costs.rows_per_step(), 1);
  for (int i = 0; i < 5; ++i) {
    costs.AddGpuReport(GpuReport());
    costs.AddCpuReport(CpuReport());
  }
  ASSERT_TRUE(costs.known());
  const SolveBin bin = costs.costs();
  EXPECT_NEAR(bin.hot_fixed, 3'000, 1);
  EXPECT_NEAR(bin.hot_per_byte, 0.5, 1e-6);
  EXPECT_NEAR(bin.cold_per_byte, 2, 1e-6);
  EXPECT_NEAR(bin.cold_fixed, 5'000 + 7'000 + 1'000, 1);
  EXPECT_NEAR(costs.rows_per_step(), 2, 1e-9);
  EXPECT_NEAR(costs.step_ns(), 4 * (27'000 + 1'000), 1);
}

TEST(CostEstimatorTest, TierThreesPartIsNotTheCpus) {
  CostEstimator costs;
  TelemetryReport gpu = GpuReport();
  for (LayerTelemetry& layer : gpu.layers) layer.counts.timed_cold_bytes = kSteps * 2'500;
  costs.AddGpuReport(gpu);
  costs.AddCpuReport(CpuReport());  // 2,500 bytes a layer in the mean
  costs.AddGpuReport(gpu);
  costs.AddCpuReport(CpuReport());
  EXPECT_NEAR(costs.costs().cold_per_byte, 1, 1e-3);
}

TEST(CostEstimatorTest, LayersThatAreAllAlikeAreChargedByTheByte) {
  CostEstimator costs;
  for (int i = 0; i < 5; ++i) {
    costs.AddGpuReport(GpuReport());
    costs.AddCpuReport(Report([](uint64_t, LayerCounters& c) {
      c.timed_cold_bytes = kSteps * 1'000;
      c.cpu_ns = kSteps * 4'000;
    }));
  }
  EXPECT_NEAR(costs.costs().cold_per_byte, 4, 1e-6);
  EXPECT_NEAR(costs.costs().cold_fixed, 7'000 + 1'000, 1);
}

TEST(CostEstimatorTest, NeitherPartOfALineIsNegative) {
  CostEstimator costs;
  for (int i = 0; i < 5; ++i) {
    costs.AddGpuReport(Report([](uint64_t bytes, LayerCounters& c) {
      c.hot_bytes = kSteps * bytes;
      c.gpu_ns = kSteps * (9'000 - bytes);  // falls with the bytes
    }));
    costs.AddCpuReport(Report([](uint64_t bytes, LayerCounters& c) {
      c.timed_cold_bytes = kSteps * bytes;
      c.cpu_ns = kSteps * (3 * bytes - 2'000);  // below 0 at no bytes
    }));
  }
  const SolveBin bin = costs.costs();
  EXPECT_GT(bin.hot_per_byte, 0);
  EXPECT_GE(bin.hot_fixed, 0);
  EXPECT_GT(bin.cold_per_byte, 0);
  EXPECT_GE(bin.cold_fixed, 0);
}

TEST(CostEstimatorTest, FollowsAMachineThatBecameSlower) {
  CostEstimator costs;
  for (int i = 0; i < 50; ++i) {
    costs.AddGpuReport(GpuReport());
    costs.AddCpuReport(CpuReport());
  }
  for (int i = 0; i < 200; ++i) {
    costs.AddCpuReport(Report([](uint64_t bytes, LayerCounters& c) {
      c.timed_cold_bytes = kSteps * bytes;
      c.cpu_ns = kSteps * (5'000 + 6 * bytes);
    }));
  }
  EXPECT_NEAR(costs.costs().cold_per_byte, 6, 0.1);
}

}  // namespace
}  // namespace isotherm
