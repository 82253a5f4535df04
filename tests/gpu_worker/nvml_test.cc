// Against a management library of our own (tests/fakes/fake_nvml.cc).
#include "gpu_worker/nvml.h"

#include <dlfcn.h>

#include <cstdlib>

#include "common/base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace isotherm::gpu {
namespace {

using testing::HasSubstr;

constexpr char kBus[] = "0000:01:00.0";

class NvmlTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(::dlopen("libnvidia-ml.so.1", RTLD_NOW), nullptr)
        << "run by ctest, which names the folder of the fake: " << ::dlerror();
  }
  void TearDown() override {
    ::unsetenv("FAKE_NVML_ACTION");
    ::unsetenv("FAKE_NVML_PROCESSES");
  }
};

TEST_F(NvmlTest, AGpuThatNeedsAResetOrARebootIsNotTriedAgain) {
  for (const auto& [action, remedy] :
       {std::pair("1", "reset it (nvidia-smi --gpu-reset)"), std::pair("2", "reboot the machine"),
        std::pair("5", "reset it (nvidia-smi --gpu-reset)")}) {
    ::setenv("FAKE_NVML_ACTION", action, 1);
    const absl::Status status = NvmlUsable(kBus);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << action;
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kCannotFit) << action;  // `serve` leaves it down
    EXPECT_THAT(std::string(status.message()), HasSubstr(remedy));
    EXPECT_THAT(std::string(status.message()), HasSubstr(kBus));
  }
}

TEST_F(NvmlTest, AnythingElseIsNoReasonNotToStart) {
  EXPECT_TRUE(NvmlUsable(kBus).ok());  // an old driver
  for (const char* action : {"0", "3", "4", "77"}) {
    ::setenv("FAKE_NVML_ACTION", action, 1);
    EXPECT_TRUE(NvmlUsable(kBus).ok()) << action;
  }
  ::setenv("FAKE_NVML_ACTION", "1", 1);
  EXPECT_TRUE(NvmlUsable("0000:02:00.0").ok());  // another one's trouble
}

TEST_F(NvmlTest, MemoryIsTheProcesssOwnOrTheOnlyOnes) {
  EXPECT_EQ(NvmlProcessMemory(kBus, 7), std::nullopt);  // it does not say
  ::setenv("FAKE_NVML_PROCESSES", "3:100,7:8000000000,9:5", 1);
  EXPECT_EQ(NvmlProcessMemory(kBus, 7), 8'000'000'000);
  EXPECT_EQ(NvmlProcessMemory(kBus, 8), std::nullopt);
  ::setenv("FAKE_NVML_PROCESSES", "3:100", 1);
  EXPECT_EQ(NvmlProcessMemory(kBus, 8), 100);  // a container's other numbers
  EXPECT_EQ(NvmlProcessMemory("0000:02:00.0", 3), std::nullopt);
}

}  // namespace
}  // namespace isotherm::gpu
