#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include "absl/strings/string_view.h"

#include "absl/status/statusor.h"

namespace isotherm {

// "8GiB", "512 MiB", "1.5GB", "32K" (binary), "4096" (bytes). InvalidArgument shows the accepted
// forms.
absl::StatusOr<int64_t> ParseBytes(absl::string_view text);

// "8.59 GB" style for people: three significant digits, decimal units.
std::string FormatBytes(int64_t bytes);

// "250ms", "30s", "5m", "2h"; a bare number is seconds.
absl::StatusOr<std::chrono::milliseconds> ParseDuration(absl::string_view text);

}  // namespace isotherm
