#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace isotherm::cli {

// Runs `program` (searched in PATH) and waits. Its output is kept, not shown: the last lines are
// the reason when it fails. NotFound when there is no such program.
absl::Status RunProgram(const std::string& program, const std::vector<std::string>& args);

}  // namespace isotherm::cli
