#include "placement_service/profile/placement_profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "common/base/exit_code.h"
#include "models/profile/activation_profile.h"

namespace isotherm {
namespace {

class PlacementProfileTest : public ::testing::Test {
 protected:
  std::string Write(const std::vector<std::string>& names) {
    const std::string path = ::testing::TempDir() + "/placement_profile_test.gguf";
    std::filesystem::remove(path);
    std::vector<ActivationProfile> profiles;
    float value = 0;
    for (const std::string& name : names) {
      value += 0.125f;
      profiles.push_back({name, {{value, 0}, {0, value}, {value, value}}});
    }
    EXPECT_TRUE(WriteActivationProfiles(path, profiles).ok());
    return path;
  }
};

TEST_F(PlacementProfileTest, TakesTheNamedOneElseChatElseTheFirst) {
  const std::string path = Write({"plain", "chat"});
  EXPECT_EQ(LoadPlacementProfile(path, "plain")->frequency[0][0], 0.125f);
  EXPECT_EQ(LoadPlacementProfile(path, "")->name, "chat");
  EXPECT_EQ(LoadPlacementProfile(path, "")->frequency[0][0], 0.25f);
  EXPECT_EQ(LoadPlacementProfile(Write({"code", "plain"}), "")->name, "code");
}

TEST_F(PlacementProfileTest, NamesWhatExistsWhenTheWantedOneDoesNot) {
  const auto profile = LoadPlacementProfile(Write({"plain", "chat"}), "poems");
  EXPECT_EQ(profile.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ExitCodeOf(profile.status()), ExitCode::kBadData);
  EXPECT_THAT(std::string(profile.status().message()), ::testing::HasSubstr("plain, chat"));
}

TEST_F(PlacementProfileTest, RefusesAnotherModelsProfile) {
  const auto profile = LoadPlacementProfile(Write({"chat"}), "");
  ASSERT_TRUE(profile.ok()) << profile.status();
  EXPECT_TRUE(CheckProfileShape(*profile, 3, 2).ok());
  EXPECT_EQ(ExitCodeOf(CheckProfileShape(*profile, 3, 4)), ExitCode::kBadData);
  EXPECT_EQ(ExitCodeOf(CheckProfileShape(*profile, 2, 2)), ExitCode::kBadData);
  EXPECT_TRUE(CheckProfileShape(PlacementProfile{}, 3, 4).ok());
}

}  // namespace
}  // namespace isotherm
