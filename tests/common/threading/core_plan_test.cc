#include "common/threading/core_plan.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace isotherm {
namespace {

using testing::ElementsAre;

std::vector<CpuPlace> Places(const std::vector<int>& cores) {
  std::vector<CpuPlace> places;
  for (size_t cpu = 0; cpu < cores.size(); ++cpu)
    places.push_back({static_cast<int>(cpu), cores[cpu]});
  return places;
}

TEST(CorePlanTest, LeavesTheFirstCpuFree) {
  const CorePlan plan = PlanCores(Places({0, 1, 2, 3, 4}), 5);
  EXPECT_THAT(plan.others, ElementsAre(0));
  EXPECT_THAT(plan.compute, ElementsAre(1, 2, 3, 4));
}

TEST(CorePlanTest, TakesWholeCoresFirstAndTheFreeCpusSiblingLast) {
  // CPUs 0 and 4 share core 0, 1 and 5 core 1, ...
  const CorePlan plan = PlanCores(Places({0, 1, 2, 3, 0, 1, 2, 3}), 8);
  EXPECT_THAT(plan.others, ElementsAre(0));
  EXPECT_THAT(plan.compute, ElementsAre(1, 2, 3, 5, 6, 7, 4));
  // Neighbours share a core.
  EXPECT_THAT(PlanCores(Places({0, 0, 1, 1, 2, 2}), 6).compute, ElementsAre(2, 4, 3, 5, 1));
}

TEST(CorePlanTest, TellsCoresOfTwoPackagesApart) {
  const CorePlan plan = PlanCores({{0, 0, 0}, {1, 0, 1}, {2, 1, 0}, {3, 1, 1}}, 4);
  EXPECT_THAT(plan.compute, ElementsAre(1, 2, 3));
}

TEST(CorePlanTest, KeepsToAQuota) {
  EXPECT_THAT(PlanCores(Places({0, 1, 2, 3, 4, 5, 6, 7}), 4).compute, ElementsAre(1, 2, 3));
}

TEST(CorePlanTest, PlansNothingOnSmallMachines) {
  EXPECT_TRUE(PlanCores(Places({0, 1, 2}), 3).empty());
  EXPECT_TRUE(PlanCores(Places({0, 1, 2, 3}), 2).empty());
  EXPECT_TRUE(PlanCores({}, 8).empty());
}

TEST(CpuPlacesTest, AreReadFromTheKernelsTree) {
  std::string root = testing::TempDir() + "/cpus-XXXXXX";
  ASSERT_NE(mkdtemp(root.data()), nullptr);
  const auto write = [&](const std::string& path, int value) {
    std::filesystem::create_directories(std::filesystem::path(root + path).parent_path());
    std::ofstream(root + path) << value << "\n";
  };
  write("/cpu2/topology/core_id", 5);
  write("/cpu2/topology/physical_package_id", 1);
  write("/cpu3/topology/core_id", 5);
  const std::vector<CpuPlace> places = ReadCpuPlaces({2, 3, 7, 8}, root);
  std::filesystem::remove_all(root);
  ASSERT_EQ(places.size(), 4u);
  EXPECT_EQ(places[0].core, 5);
  EXPECT_EQ(places[0].package, 1);
  EXPECT_EQ(places[1].package, 0);
  EXPECT_NE(places[2].core, places[3].core) << "of unknown CPUs each is a core of its own";
}

}  // namespace
}  // namespace isotherm
