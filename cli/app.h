#pragma once

#include "cli/ui/console.h"

namespace isotherm::cli {

// The whole command: parses, runs the verb given, prints its error. Returns the exit code.
int RunApp(int argc, const char* const* argv, Console& console);

}  // namespace isotherm::cli
