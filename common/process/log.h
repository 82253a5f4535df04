#pragma once

#include <fmt/core.h>

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace isotherm {

// Sends the log to stderr: text on a terminal, else one JSON object a line with ts, level, service,
// msg (control bytes escaped). `level` is trace, debug, info, warn, error or off; InvalidArgument
// otherwise. Call it first thing in main(); a later call replaces what an earlier one said.
absl::Status InitLogging(absl::string_view service, absl::string_view level);

enum class LogLevel { kInfo, kWarning, kError, kCritical };

namespace log_internal {
void Write(LogLevel level, fmt::string_view format, fmt::format_args args);
}  // namespace log_internal

// Formats as {fmt} does, checked by the compiler. Only the arguments' types are templates: what
// formats them and writes is compiled once. A record that cannot be written is dropped.
template <typename... Args>
void Log(LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
  log_internal::Write(level, format, fmt::make_format_args(args...));
}
template <typename... Args>
void LogInfo(fmt::format_string<Args...> format, Args&&... args) {
  log_internal::Write(LogLevel::kInfo, format, fmt::make_format_args(args...));
}
template <typename... Args>
void LogWarning(fmt::format_string<Args...> format, Args&&... args) {
  log_internal::Write(LogLevel::kWarning, format, fmt::make_format_args(args...));
}
template <typename... Args>
void LogError(fmt::format_string<Args...> format, Args&&... args) {
  log_internal::Write(LogLevel::kError, format, fmt::make_format_args(args...));
}

// `text` with control bytes escaped, for log lines and terminals.
std::string EscapeControl(absl::string_view text);

}  // namespace isotherm
