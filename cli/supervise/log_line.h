#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace isotherm::cli {

// A record that a service wrote to stderr.
struct LogLine {
  std::string service;
  std::string level;    // "info", "warning", "error", ...; "" for a line that is not a record
  std::string message;  // control bytes escaped
  std::string raw;      // the line as it came, control bytes escaped
};

// Reads one JSON record of `service`; anything else (a sanitizer's report, a library's message)
// becomes a line without level.
LogLine ParseLogLine(absl::string_view service, absl::string_view line);

bool IsError(const LogLine& line);

}  // namespace isotherm::cli
