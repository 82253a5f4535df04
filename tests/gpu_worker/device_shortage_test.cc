#include "gpu_worker/device_shortage.h"

#include "common/base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace isotherm::gpu {
namespace {

// Of a device of 80 GiB.
absl::Status Shortage(int64_t needed_gib, int64_t free_gib) {
  constexpr int64_t kGiB = int64_t{1} << 30;
  return ShortageStatus({.what = "the KV cache",
                         .needed_bytes = needed_gib * kGiB,
                         .free_bytes = free_gib * kGiB,
                         .total_bytes = 80 * kGiB,
                         .remedy = "lower --context"});
}

TEST(DeviceShortageTest, NamesWhatIsNeededWhatIsFreeAndWhatToDo) {
  const absl::Status status = Shortage(8, 3);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(),
            "the GPU's memory is short: the KV cache needs 8.59 GB, 3.22 GB are free; lower "
            "--context");
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kShortage);  // a restart may find it
}

TEST(DeviceShortageTest, WhatTheDeviceNeverHasIsNoReasonToTryAgain) {
  const absl::Status status = Shortage(81, 79);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr(", it has 85.9 GB; lower"));
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kCannotFit);
}

}  // namespace
}  // namespace isotherm::gpu
