#include "bench/e2e/drift/drift_summary.h"

#include <algorithm>
#include <functional>
#include <istream>
#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace isotherm::bench {
namespace {

constexpr double kJustAfter = 400, kLater = 2'000, kLaterEnd = 3'000;  // tokens
constexpr double kReached = 0.95;

std::optional<double> Median(const std::vector<DriftRow>& rows,
                             const std::function<bool(const DriftRow&)>& wanted) {
  std::vector<double> speeds;
  for (const DriftRow& row : rows) {
    if (wanted(row)) speeds.push_back(row.tokens_per_second);
  }
  if (speeds.empty()) return std::nullopt;
  std::sort(speeds.begin(), speeds.end());
  const size_t middle = speeds.size() / 2;
  return speeds.size() % 2 == 1 ? speeds[middle] : (speeds[middle - 1] + speeds[middle]) / 2;
}

}  // namespace

absl::StatusOr<std::vector<DriftRow>> ReadDriftRows(std::istream& lines) {
  std::vector<DriftRow> rows;
  int64_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (line.empty()) continue;
    const nlohmann::json json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, " is no JSON object; want those of bench/run_drift"));
    }
    const auto is_number = [&](const char* key) {
      return json.contains(key) && json[key].is_number();
    };
    const auto is_text = [&](const char* key) {
      return json.contains(key) && json[key].is_string();
    };
    if (!is_text("figure") || json["figure"] != "drift") continue;
    if (!is_text("name") || !is_text("tokens") || !is_number("done") ||
        !is_number("tokens_per_second") || !is_number("hit_share")) {
      return absl::InvalidArgumentError(absl::StrCat(
          "line ", number, " lacks one of name, tokens, done, tokens_per_second, hit_share"));
    }
    rows.push_back({.name = json["name"],
                    .tokens = json["tokens"],
                    .done = json["done"],
                    .tokens_per_second = json["tokens_per_second"],
                    .hit_share = json["hit_share"]});
  }
  return rows;
}

DriftSummary Summarize(const std::vector<DriftRow>& rows, double scale) {
  DriftSummary out;
  const auto of = [](const DriftRow& row, const char* name, const char* tokens) {
    return row.name == name && row.tokens == tokens;
  };
  double first_phase = 0;
  for (const DriftRow& row : rows) {
    if (of(row, "live", "designed")) {
      first_phase = std::max(first_phase, static_cast<double>(row.done));
    }
  }
  const auto done = [&](const DriftRow& row) { return static_cast<double>(row.done) * scale; };
  out.before = Median(rows, [&](const DriftRow& row) {
    return of(row, "live", "designed") && static_cast<double>(row.done) > first_phase / 2;
  });
  out.just_after = Median(rows, [&](const DriftRow& row) {
    return of(row, "live", "drifted") && done(row) <= kJustAfter;
  });
  out.later = Median(rows, [&](const DriftRow& row) {
    return of(row, "live", "drifted") && done(row) > kLater && done(row) <= kLaterEnd;
  });
  out.fresh = Median(rows, [&](const DriftRow& row) { return of(row, "fresh", "drifted"); });
  out.still = Median(rows, [&](const DriftRow& row) { return of(row, "static", "drifted"); });
  // Of the cold server, two requests in a row, so that one lucky request does not count.
  std::optional<double> last;
  int64_t last_done = 0;
  for (const DriftRow& row : rows) {
    if (!of(row, "cold", "designed")) continue;
    if (!out.cold_first.has_value()) out.cold_first = row.tokens_per_second;
    const double enough = kReached * out.before.value_or(0);
    if (out.before.has_value() && !out.cold_tokens_to_95.has_value() && last.has_value() &&
        *last >= enough && row.tokens_per_second >= enough) {
      out.cold_tokens_to_95 = last_done;
    }
    last = row.tokens_per_second;
    last_done = row.done;
  }
  return out;
}

std::string ToJson(const DriftSummary& summary) {
  nlohmann::ordered_json json = {{"figure", "drift_summary"}};
  const auto add = [&](const char* key, const auto& value) {
    json[key] = value.has_value() ? nlohmann::ordered_json(*value) : nlohmann::ordered_json();
  };
  add("before", summary.before);
  add("just_after", summary.just_after);
  add("2000_later", summary.later);
  add("fresh_profile", summary.fresh);
  add("no_replacement", summary.still);
  add("cold_first", summary.cold_first);
  add("cold_tokens_to_95_percent", summary.cold_tokens_to_95);
  std::optional<double> regained;
  if (summary.later.has_value() && summary.fresh.has_value()) {
    regained = *summary.later / *summary.fresh;
  }
  add("2000_later_of_fresh", regained);
  return json.dump();
}

}  // namespace isotherm::bench
