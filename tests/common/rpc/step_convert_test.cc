#include "common/rpc/step_convert.h"

#include <gtest/gtest.h>

namespace isotherm::rpc {
namespace {

TEST(StepConvertTest, EveryFieldOfALayersTimesArrivesInItsPlace) {
  StepResult sent{.step_id = 5, .epoch = 6};
  sent.timings.push_back({.layer = 1,
                          .attention_us = 2,
                          .predict_us = 3,
                          .gpu_us = 4,
                          .cpu_us = 5,
                          .wait_us = 6,
                          .merge_us = 7,
                          .streamed_us = 8,
                          .active_neurons = 9,
                          .hot_neurons = 10,
                          .post_us = 11});
  const absl::StatusOr<StepResult> got = FromProto(ToProto(sent));
  ASSERT_TRUE(got.ok()) << got.status();
  ASSERT_EQ(got->timings.size(), 1u);
  const LayerTiming& timing = got->timings[0];
  EXPECT_EQ(timing.layer, 1);
  EXPECT_EQ(timing.attention_us, 2);
  EXPECT_EQ(timing.predict_us, 3);
  EXPECT_EQ(timing.gpu_us, 4);
  EXPECT_EQ(timing.cpu_us, 5);
  EXPECT_EQ(timing.wait_us, 6);
  EXPECT_EQ(timing.merge_us, 7);
  EXPECT_EQ(timing.streamed_us, 8);
  EXPECT_EQ(timing.active_neurons, 9);
  EXPECT_EQ(timing.hot_neurons, 10);
  EXPECT_EQ(timing.post_us, 11);
}

TEST(StepConvertTest, EveryPurposeOfMemoryArrivesInItsPlace) {
  const DeviceMemoryUse sent{.context = 1,
                             .dense = 2,
                             .head = 3,
                             .predictor = 4,
                             .kv = 5,
                             .workspace = 6,
                             .tables = 7,
                             .hot_pool = 8,
                             .process = 9,
                             .budget = 10};
  EXPECT_EQ(FromProto(ToProto(sent)), sent);
}

}  // namespace
}  // namespace isotherm::rpc
