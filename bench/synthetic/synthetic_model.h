#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "bench/synthetic/synthetic_options.h"
#include "models/profile/activation_profile.h"

namespace isotherm::bench {

struct GenerateOptions {
  int num_threads = 1;
  bool huge_pages = false;  // on tmpfs: 2 MiB pages where the host gives them
  // From the writing threads, one at a time: bytes done, bytes in all.
  std::function<void(int64_t done, int64_t total)> progress;
};

// Writes the model to `path`, and its designed activity to the profile beside it. The same options
// give the same bytes with any number of threads. InvalidArgument for options that Validate()
// refuses; ResourceExhausted (exit code 71) when there is no room.
absl::Status GenerateSyntheticModel(const SyntheticOptions& options, const std::string& path,
                                    const GenerateOptions& generate);

// Bytes of all tensors.
int64_t SyntheticModelBytes(const SyntheticOptions& options);

// The designed activity: "designed", and "drifted" for the second class of tokens.
std::vector<ActivationProfile> DesignedProfiles(const SyntheticOptions& options);

}  // namespace isotherm::bench
