#pragma once

#include <optional>

#include "absl/status/status.h"

namespace CLI {  // NOLINT(readability-identifier-naming)
class App;
}

namespace isotherm {

// Parses a service's flags. Prints --help and --version itself: `exit_code` is then set and what
// was parsed is void. InvalidArgument says what is wrong and where to read what would work.
absl::Status ParseFlags(CLI::App& app, int argc, char** argv, std::optional<int>* exit_code);

}  // namespace isotherm
