#include "common/telemetry/report_builder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace isotherm {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

NeuronCounters Counters() {
  NeuronCounters out{
      .epoch = 4, .epoch_changes = 1, .steps = 10, .decode_steps = 8, .decode_rows = 16};
  out.layers = {{.tokens = 20, .timed_steps = 8, .gpu_ns = 100}, {.tokens = 20}};
  out.predicted = {1, 2, 3, 4};
  out.fired = {0, 1, 0, 0};
  return out;
}

TEST(ReportBuilderTest, TheFirstReportHasEverythingSinceTheStart) {
  ReportBuilder builder("me", "model");
  const TelemetryReport report = builder.Build(Counters(), 1'000'000);
  EXPECT_EQ(report.instance_id, "me");
  EXPECT_EQ(report.model_digest, "model");
  EXPECT_EQ(report.sequence, 1);
  EXPECT_EQ(report.interval_us, 1'000'000);
  EXPECT_EQ(report.epoch, 4);
  EXPECT_EQ(report.epoch_changes, 1u);
  EXPECT_EQ(report.steps, 10u);
  EXPECT_EQ(report.num_neurons, 2);
  ASSERT_EQ(report.layers.size(), 2u);
  EXPECT_EQ(report.layers[0].counts.gpu_ns, 100u);
  EXPECT_THAT(report.layers[0].predicted, ElementsAre(1, 2));
  EXPECT_THAT(report.layers[1].predicted, ElementsAre(3, 4));
  EXPECT_THAT(report.layers[0].fired, ElementsAre(0, 1));
  EXPECT_THAT(report.layers[1].fired, IsEmpty());  // all zero
}

TEST(ReportBuilderTest, WhatWasNotSentIsInTheNextReport) {
  ReportBuilder builder("me", "model");
  NeuronCounters counters = Counters();
  builder.Build(counters, 1);
  counters.steps += 5;
  counters.predicted[0] += 3;
  TelemetryReport report = builder.Build(counters, 2);
  EXPECT_EQ(report.sequence, 1);
  EXPECT_EQ(report.steps, 15u);
  EXPECT_THAT(report.layers[0].predicted, ElementsAre(4, 2));
  builder.Sent(counters);
  counters.steps += 1;
  counters.fired[3] += 9;
  counters.layers[1].tokens += 2;
  report = builder.Build(counters, 3);
  EXPECT_EQ(report.sequence, 2);
  EXPECT_EQ(report.steps, 1u);
  EXPECT_EQ(report.epoch_changes, 0u);
  EXPECT_THAT(report.layers[0].predicted, IsEmpty());
  EXPECT_EQ(report.layers[0].counts.gpu_ns, 0u);
  EXPECT_EQ(report.layers[1].counts.tokens, 2u);
  EXPECT_THAT(report.layers[1].fired, ElementsAre(0, 9));
}

TEST(ReportBuilderTest, CountsWrap) {
  ReportBuilder builder("me", "model");
  NeuronCounters counters = Counters();
  counters.predicted[1] = 0xfffffffeu;
  builder.Sent(counters);
  counters.predicted[1] = 3;
  ++counters.steps;
  EXPECT_THAT(builder.Build(counters, 1).layers[0].predicted, ElementsAre(0, 5));
}

TEST(ReportBuilderTest, AnIdleWorkerReportsNoLayers) {
  ReportBuilder builder("me", "model");
  NeuronCounters counters = Counters();
  builder.Sent(counters);
  const TelemetryReport report = builder.Build(counters, 1'000'000);
  EXPECT_THAT(report.layers, IsEmpty());
  EXPECT_EQ(report.sequence, 2);
  EXPECT_EQ(report.num_neurons, 2);
}

}  // namespace
}  // namespace isotherm
