#include "common/base/units.h"

#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace isotherm {
namespace {

struct Unit {
  absl::string_view name;
  double factor;
};

// Splits "1.5 GiB" into 1.5 and "GiB". False for anything that does not start with a plain number.
bool SplitNumber(absl::string_view text, double* number, absl::string_view* unit) {
  text = absl::StripAsciiWhitespace(text);
  if (text.empty() || text.front() < '0' || text.front() > '9') return false;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), *number, std::chars_format::fixed);
  if (error != std::errc() || !std::isfinite(*number)) return false;
  *unit = absl::StripAsciiWhitespace(text.substr(static_cast<size_t>(end - text.data())));
  return true;
}

}  // namespace

absl::StatusOr<int64_t> ParseBytes(absl::string_view text) {
  static constexpr std::array<Unit, 19> kUnits = {{{"", 1},
                                                   {"B", 1},
                                                   {"K", 1024.0},
                                                   {"KiB", 1024.0},
                                                   {"KB", 1e3},
                                                   {"M", 1048576.0},
                                                   {"MiB", 1048576.0},
                                                   {"MB", 1e6},
                                                   {"G", 1073741824.0},
                                                   {"GiB", 1073741824.0},
                                                   {"GB", 1e9},
                                                   {"T", 1099511627776.0},
                                                   {"TiB", 1099511627776.0},
                                                   {"TB", 1e12},
                                                   {"Ki", 1024.0},
                                                   {"Mi", 1048576.0},
                                                   {"Gi", 1073741824.0},
                                                   {"Ti", 1099511627776.0},
                                                   {"bytes", 1}}};
  double number = 0;
  absl::string_view unit;
  if (SplitNumber(text, &number, &unit)) {
    for (const Unit& candidate : kUnits) {
      if (!absl::EqualsIgnoreCase(unit, candidate.name)) continue;
      const double bytes = number * candidate.factor;
      if (bytes >= 9.2e18) break;
      return static_cast<int64_t>(bytes);
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("not a size: '", text, "'; write bytes or a unit, such as 8GiB, 512MiB, 32K"));
}

std::string FormatBytes(int64_t bytes) {
  static constexpr std::array<absl::string_view, 5> kNames = {"B", "kB", "MB", "GB", "TB"};
  double value = static_cast<double>(bytes);
  size_t idx = 0;
  while (std::abs(value) >= 999.5 && idx + 1 < kNames.size()) {
    value /= 1000;
    ++idx;
  }
  if (idx == 0) return absl::StrCat(bytes, " B");
  const int decimals = std::abs(value) >= 99.95 ? 0 : std::abs(value) >= 9.995 ? 1 : 2;
  return absl::StrFormat("%.*f %s", decimals, value, kNames[idx]);
}

absl::StatusOr<std::chrono::milliseconds> ParseDuration(absl::string_view text) {
  static constexpr std::array<Unit, 6> kUnits = {
      {{"", 1e3}, {"ms", 1}, {"s", 1e3}, {"m", 6e4}, {"min", 6e4}, {"h", 3.6e6}}};
  double number = 0;
  absl::string_view unit;
  if (SplitNumber(text, &number, &unit)) {
    for (const Unit& candidate : kUnits) {
      if (unit != candidate.name) continue;
      const double ms = number * candidate.factor;
      if (ms >= 9.2e18) break;
      return std::chrono::milliseconds(static_cast<int64_t>(ms));
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("not a duration: '", text, "'; write a number and ms, s, m or h, such as 30s"));
}

}  // namespace isotherm
