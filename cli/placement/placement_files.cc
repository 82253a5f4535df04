#include "cli/placement/placement_files.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "models/profile/activation_profile.h"
#include "models/profile/gpu_index.h"

namespace isotherm::cli {
namespace {

constexpr char kFired[] = ".fired";

}  // namespace

absl::Status WriteProfileFile(const std::string& path, const ProfileInfo& profile) {
  std::vector<ActivationProfile> profiles = {{profile.name, profile.predicted}};
  if (profile.fired != profile.predicted && !profile.fired.empty()) {
    profiles.push_back({absl::StrCat(profile.name, kFired), profile.fired});
  }
  return WriteActivationProfiles(path, profiles);
}

absl::StatusOr<ProfileInfo> ReadProfileFile(const std::string& path, absl::string_view name) {
  ISOTHERM_ASSIGN_OR_RETURN(std::vector<ActivationProfile> profiles, ReadActivationProfiles(path));
  const auto find = [&](absl::string_view wanted) {
    return std::find_if(profiles.begin(), profiles.end(),
                        [&](const ActivationProfile& profile) { return profile.name == wanted; });
  };
  const auto found = name.empty() ? profiles.begin() : find(name);
  if (found == profiles.end()) {
    return WithExitCode(absl::NotFoundError(absl::StrCat(
                            path, ": has no profile '", name, "'; it has: ",
                            absl::StrJoin(profiles, ", ",
                                          [](std::string* out, const ActivationProfile& profile) {
                                            out->append(profile.name);
                                          }))),
                        ExitCode::kBadData);
  }
  ProfileInfo out{.name = found->name, .predicted = found->frequency};
  const auto fired = find(absl::StrCat(found->name, kFired));
  if (fired != profiles.end()) out.fired = fired->frequency;
  return out;
}

absl::Status WritePlanFile(const std::string& path, const PlacementInfo& plan) {
  GpuIndex index{.vram_capacity = plan.budget_bytes};
  for (const LayerShare& layer : plan.layers) {
    index.num_neurons = layer.total_neurons;
    index.hot.push_back(layer.hot);
  }
  return WriteGpuIndex(path, index);
}

absl::StatusOr<PlanImport> ReadPlanFile(const std::string& path) {
  ISOTHERM_ASSIGN_OR_RETURN(GpuIndex index, ReadGpuIndex(path));
  return PlanImport{.source = std::filesystem::path(path).filename().string(),
                    .num_neurons = index.num_neurons,
                    .hot = std::move(index.hot)};
}

bool IsPlanFile(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored) ? IsGpuIndex(path)
                                                : absl::EndsWith(path, ".gpuidx");
}

}  // namespace isotherm::cli
