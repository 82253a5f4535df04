#pragma once

#include <filesystem>

#include "absl/status/status.h"

namespace isotherm::cli {

// Adds to a server's end what the user can do, by its exit code.
absl::Status WithStartRemedy(absl::Status status, const std::filesystem::path& model);

}  // namespace isotherm::cli
