#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cli/client/placement_client.h"

namespace isotherm::cli {

// Files that placements and profiles come from and go to: `.gpuidx` holds a plan's hot sets as
// PowerInfer reads them, `.gguf` named activation profiles. All failures have an exit code.

// The profile under its name and, where neurons fired otherwise than predicted, "NAME.fired" too.
absl::Status WriteProfileFile(const std::string& path, const ProfileInfo& profile);
// The profile `name`; "" takes the first.
absl::StatusOr<ProfileInfo> ReadProfileFile(const std::string& path, absl::string_view name);

absl::Status WritePlanFile(const std::string& path, const PlacementInfo& plan);
absl::StatusOr<PlanImport> ReadPlanFile(const std::string& path);

// Whether `path` names a plan's file rather than a profile's: by contents if it exists, by its
// ending if not.
bool IsPlanFile(const std::string& path);

}  // namespace isotherm::cli
