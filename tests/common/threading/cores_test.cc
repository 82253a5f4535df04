#include "common/threading/cores.h"

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace isotherm {
namespace {

class CgroupQuotaTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "/cgroup-XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  std::string root_;
};

TEST_F(CgroupQuotaTest, TakesTheTightestLevelOfV2) {
  Write("/cpu.max", "max 100000\n");
  Write("/pods/cpu.max", "250000 100000\n");
  Write("/pods/a/cpu.max", "400000 100000\n");
  EXPECT_EQ(CgroupQuotaCores(root_, "0::/pods/a\n"), 2.5);
}

TEST_F(CgroupQuotaTest, ReadsV1AndIgnoresOtherControllers) {
  Write("/cpu,cpuacct/job/cpu.cfs_quota_us", "150000\n");
  Write("/cpu,cpuacct/job/cpu.cfs_period_us", "50000\n");
  Write("/memory/job/cpu.cfs_quota_us", "1000\n");
  Write("/memory/job/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(CgroupQuotaCores(root_, "5:memory:/job\n4:cpu,cpuacct:/job\n0::/\n"), 3.0);
}

TEST_F(CgroupQuotaTest, FindsNoneWhereNoneIsSet) {
  Write("/cpu/cpu.cfs_quota_us", "-1\n");
  Write("/cpu/cpu.cfs_period_us", "100000\n");
  Write("/x/cpu.max", "garbage\n");
  EXPECT_EQ(CgroupQuotaCores(root_, "1:cpu:/\n0::/x\n"), std::nullopt);
  EXPECT_EQ(CgroupQuotaCores(root_, "no colons here"), std::nullopt);
  EXPECT_EQ(CgroupQuotaCores("/nonexistent", "0::/a"), std::nullopt);
}

TEST_F(CgroupQuotaTest, ReadsTheInnermostCpuset) {
  Write("/cpuset.cpus.effective", "0-7\n");
  Write("/pods/cpuset.cpus.effective", "2-3\n");
  EXPECT_THAT(CgroupCpus(root_, "0::/pods/a\n"), testing::Optional(testing::ElementsAre(2, 3)));
  Write("/cpuset/job/cpuset.cpus", "4\n");
  Write("/cpuset/cpuset.cpus", "0-15\n");
  EXPECT_THAT(CgroupCpus(root_, "3:cpuset:/job\n"), testing::Optional(testing::ElementsAre(4)));
  EXPECT_THAT(CgroupCpus(root_, "3:cpuset:/elsewhere\n"), testing::Optional(testing::SizeIs(16)));
  EXPECT_EQ(CgroupCpus("/nonexistent", "0::/a\n3:cpuset:/a\n"), std::nullopt);
}

TEST(QuotaWarningTest, SpeaksOfAShareOfTimeOnly) {
  EXPECT_EQ(QuotaWarning(std::nullopt, 16), "");
  EXPECT_EQ(QuotaWarning(16.0, 16), "");
  EXPECT_THAT(QuotaWarning(2.5, 16), testing::HasSubstr("2.5 of 16 CPUs"));
  EXPECT_THAT(QuotaWarning(8.0, 16), testing::HasSubstr("cpuset"));
}

TEST(CoresTest, BindsEveryThreadOfTheProcess) {
  const std::vector<int> allowed = AllowedCpus();
  std::atomic<int> stage{0};
  std::vector<int> seen;
  std::thread other([&] {
    stage = 1;
    while (stage != 2) std::this_thread::yield();
    seen = AllowedCpus();
  });
  while (stage != 1) std::this_thread::yield();
  EXPECT_TRUE(BindProcess({allowed.front()}));
  stage = 2;
  other.join();
  EXPECT_EQ(seen, std::vector<int>{allowed.front()});
  EXPECT_EQ(AllowedCpus(), std::vector<int>{allowed.front()});
  EXPECT_TRUE(BindProcess(allowed));
  EXPECT_EQ(AllowedCpus(), allowed);
}

TEST(CoresTest, DefaultLeavesOneCoreFromThreeUp) {
  EXPECT_EQ(DefaultThreadCountFor(0), 1);
  EXPECT_EQ(DefaultThreadCountFor(1), 1);
  EXPECT_EQ(DefaultThreadCountFor(2), 2);
  EXPECT_EQ(DefaultThreadCountFor(3), 2);
  EXPECT_EQ(DefaultThreadCountFor(16), 15);
}

TEST(CoresTest, BindsOnlyToCpusThatExist) {
  const std::vector<int> allowed = AllowedCpus();
  std::thread([&] {
    EXPECT_FALSE(BindThisThread({}));
    EXPECT_FALSE(BindThisThread({-1, 100'000}));
    EXPECT_EQ(AllowedCpus(), allowed);
    EXPECT_TRUE(BindThisThread({allowed.front()}));
    EXPECT_EQ(AllowedCpus(), std::vector<int>{allowed.front()});
  }).join();
}

TEST(CoresTest, AllowedCoresIsWithinTheAffinityMask) {
  EXPECT_GE(AllowedCores(), 1);
  EXPECT_LE(AllowedCores(), static_cast<int>(AllowedCpus().size()));
}

}  // namespace
}  // namespace isotherm
