#include "placement_service/profile/placement_profile.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "models/profile/activation_profile.h"

namespace isotherm {
namespace {
constexpr absl::string_view kPreferred = "chat";
}  // namespace

absl::StatusOr<PlacementProfile> LoadPlacementProfile(const std::string& path,
                                                      absl::string_view name) {
  ISOTHERM_ASSIGN_OR_RETURN(std::vector<ActivationProfile> profiles, ReadActivationProfiles(path));
  if (profiles.empty()) {
    return WithExitCode(absl::DataLossError(absl::StrCat(path, ": has no profile")),
                        ExitCode::kBadData);
  }
  const auto find = [&](absl::string_view wanted) {
    return std::find_if(profiles.begin(), profiles.end(),
                        [&](const ActivationProfile& profile) { return profile.name == wanted; });
  };
  auto found = find(name.empty() ? kPreferred : name);
  if (found == profiles.end()) {
    if (!name.empty()) {
      return WithExitCode(absl::NotFoundError(absl::StrCat(
                              path, ": has no profile '", name, "'; choose one of: ",
                              absl::StrJoin(profiles, ", ",
                                            [](std::string* out, const ActivationProfile& profile) {
                                              out->append(profile.name);
                                            }))),
                          ExitCode::kBadData);
    }
    found = profiles.begin();
  }
  return PlacementProfile{.name = std::move(found->name), .frequency = std::move(found->frequency)};
}

absl::Status CheckProfileShape(const PlacementProfile& profile, int64_t num_layers,
                               int64_t num_neurons) {
  if (profile.frequency.empty()) return absl::OkStatus();
  const auto layers = static_cast<int64_t>(profile.frequency.size());
  const auto neurons = static_cast<int64_t>(profile.frequency.front().size());
  if (layers == num_layers && neurons == num_neurons) return absl::OkStatus();
  return WithExitCode(
      absl::FailedPreconditionError(absl::StrCat(
          "the profile '", profile.name, "' is for ", layers, " layers of ", neurons,
          " neurons, the model has ", num_layers, " of ", num_neurons,
          "; give the profile that was made for this model with --profile-file, or none")),
      ExitCode::kBadData);
}

}  // namespace isotherm
