#include "cli/serve/four_services.h"

#include <algorithm>
#include <filesystem>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace isotherm::cli {
namespace {

class FourServicesTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "/four-XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    state_dir_ = pattern;
    run_dir_ = *RunDir::Create(state_dir_);
  }
  void TearDown() override {
    run_dir_.reset();
    std::filesystem::remove_all(state_dir_);
  }
  // The value after each service's `flag`; "-" where it has none. In the order of the specs.
  std::vector<std::string> Values(const CorePlan& cores, const std::string& flag) {
    std::vector<std::string> values;
    for (const ServiceSpec& spec :
         MakeFourServices({}, "model.gguf", "/bin", *run_dir_, "/plans", cores).specs) {
      const auto at = std::find(spec.args.begin(), spec.args.end(), flag);
      values.push_back(at == spec.args.end() ? "-" : *(at + 1));
    }
    return values;
  }

  std::filesystem::path state_dir_;
  std::unique_ptr<RunDir> run_dir_;
};

TEST_F(FourServicesTest, ACorePlanKeepsEverythingElseOffTheComputeCpus) {
  const CorePlan cores{.compute = {1, 2, 3, 5, 4}, .others = {0}};
  EXPECT_THAT(Values(cores, "--cpus"), testing::Each("0"));
  EXPECT_THAT(Values(cores, "--compute-cpus"), testing::ElementsAre("1-5", "-", "-", "-"));
  EXPECT_EQ(Values(cores, "--threads")[0], "5");
}

TEST_F(FourServicesTest, WithoutOneNothingIsBound) {
  EXPECT_THAT(Values({}, "--cpus"), testing::Each("-"));
  EXPECT_THAT(Values({}, "--compute-cpus"), testing::Each("-"));
  EXPECT_EQ(Values({}, "--threads")[0], "0");
}

TEST_F(FourServicesTest, ThereIsNoPlanWithoutAGpu) {
  EXPECT_TRUE(CoresBesideGpu({.device = "cpu"}).empty());
}

}  // namespace
}  // namespace isotherm::cli
