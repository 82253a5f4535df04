#include "models/profile/activation_profile.h"

#include <cmath>

#include "common/base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/models/gguf/gguf_bytes.h"
#include "tests/models/temp_folder.h"

namespace isotherm {
namespace {

using ::testing::HasSubstr;

std::vector<ActivationProfile> Two() {
  return {{.name = "chat", .frequency = {{0, 0.25f, 1}, {0.5f, 0.125f, 0.75f}}},
          {.name = "text", .frequency = {{1, 1, 1}, {0, 0, 0}}}};
}

void ExpectProfileRefused(const std::string& path, const std::string& naming) {
  const absl::Status status = ReadActivationProfiles(path).status();
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kBadData) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(naming));
}

TEST(ActivationProfileTest, LiesBesideItsModel) {
  EXPECT_EQ(ProfilePathFor("/models/a.gguf"), "/models/a.profile.gguf");
  EXPECT_EQ(ProfilePathFor("plain"), "plain.profile.gguf");
}

TEST(ActivationProfileTest, ReadsWhatWasWritten) {
  const TempFolder folder;
  ASSERT_EQ(WriteActivationProfiles(folder.File("p.gguf"), Two()), absl::OkStatus());
  const auto read = ReadActivationProfiles(folder.File("p.gguf"));
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ((*read)[i].name, Two()[i].name);
    EXPECT_EQ((*read)[i].frequency, Two()[i].frequency);
  }
}

TEST(ActivationProfileTest, RefusesSharesOutsideZeroToOne) {
  const TempFolder folder;
  for (const float bad : {-0.1f, 1.5f, std::nanf(""), HUGE_VALF}) {
    std::vector<ActivationProfile> profiles = Two();
    profiles[1].frequency[1][2] = bad;
    ASSERT_EQ(WriteActivationProfiles(folder.File("p.gguf"), profiles), absl::OkStatus());
    ExpectProfileRefused(folder.File("p.gguf"), "blk.1.activation_frequency.text");
  }
}

TEST(ActivationProfileTest, RefusesLayersOfDifferentLengthAndOtherFiles) {
  const TempFolder folder;
  std::vector<ActivationProfile> profiles = Two();
  profiles[0].frequency[1].push_back(0);
  ASSERT_EQ(WriteActivationProfiles(folder.File("p.gguf"), profiles), absl::OkStatus());
  ExpectProfileRefused(folder.File("p.gguf"), "4 neurons");
  ExpectProfileRefused(folder.File("none.gguf"), "none.gguf");
  ExpectProfileRefused(
      MemoryFile(GgufBytes().Header(0, 1).Str("general.type", "model").bytes()).path(), "'model'");
}

TEST(ActivationProfileTest, RefusesAProfileOfAnotherModel) {
  EXPECT_EQ(CheckProfileFits(Two()[0], 2, 3), absl::OkStatus());
  for (const auto& [layers, neurons] : {std::pair(3, 3), std::pair(1, 3), std::pair(2, 4)}) {
    const absl::Status status = CheckProfileFits(Two()[0], layers, neurons);
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kBadData);
    EXPECT_THAT(std::string(status.message()), HasSubstr("profile 'chat' is of 2 layers of 3"));
  }
}

}  // namespace
}  // namespace isotherm
