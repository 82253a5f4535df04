#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace isotherm {

// How often each neuron fires on one kind of text: share of tokens, 0 to 1.
struct ActivationProfile {
  std::string name;                           // "chat"
  std::vector<std::vector<float>> frequency;  // [num_layers][num_neurons]
};

// The file that lies beside a model: "model.gguf" -> "model.profile.gguf".
std::string ProfilePathFor(absl::string_view model_path);

// DataLoss (exit code 65) when a layer is missing, of another length, or not within 0 .. 1.
absl::StatusOr<std::vector<ActivationProfile>> ReadActivationProfiles(const std::string& path);
absl::Status WriteActivationProfiles(const std::string& path,
                                     const std::vector<ActivationProfile>& profiles);

// DataLoss (exit code 65) when the profile belongs to a model of another shape.
absl::Status CheckProfileFits(const ActivationProfile& profile, int64_t num_layers,
                              int64_t num_neurons);

}  // namespace isotherm
