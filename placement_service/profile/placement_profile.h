#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace isotherm {

// What a plan is solved for.
struct PlacementProfile {
  std::string name = "even";                  // as PlacementPlan.profile shows it
  std::vector<std::vector<float>> frequency;  // [num_layers][num_neurons]; empty: nothing is known
};

// The profile `name` of the file; "" takes "chat" if there is one, else the first. NotFound (exit
// code 65) with the names that exist; DataLoss (65) when the file is damaged or empty.
absl::StatusOr<PlacementProfile> LoadPlacementProfile(const std::string& path,
                                                      absl::string_view name);

// FailedPrecondition (exit code 65) when the profile was made for another model.
absl::Status CheckProfileShape(const PlacementProfile& profile, int64_t num_layers,
                               int64_t num_neurons);

}  // namespace isotherm
