#pragma once

#include <spdlog/spdlog.h>

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace isotherm {

// Sends spdlog's default logger to stderr: text on a terminal, else one JSON object a line with
// ts, level, service, msg (control bytes escaped). `level` is trace, debug, info, warn, error or
// off; InvalidArgument otherwise. Call once, first thing in main().
absl::Status InitLogging(absl::string_view service, absl::string_view level);

// `text` with control bytes escaped, for log lines and terminals.
std::string EscapeControl(absl::string_view text);

}  // namespace isotherm
