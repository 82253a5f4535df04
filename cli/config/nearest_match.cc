#include "cli/config/nearest_match.h"

#include <algorithm>
#include <cstdint>

namespace isotherm::cli {
namespace {

constexpr size_t kMaxBytes = 64;

int64_t EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<int64_t> before_last(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) last[j] = static_cast<int64_t>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = static_cast<int64_t>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const int64_t replaced = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({replaced, last[j] + 1, row[j - 1] + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before_last[j - 2] + 1);
      }
    }
    std::swap(before_last, last);
    std::swap(last, row);
  }
  return last[b.size()];
}

}  // namespace

std::string NearestMatch(absl::string_view text, const std::vector<std::string>& candidates) {
  std::string best;
  int64_t best_distance = 0;
  const absl::string_view head = text.substr(0, kMaxBytes);
  for (const std::string& candidate : candidates) {
    const int64_t distance = EditDistance(head, candidate);
    const int64_t limit = std::max<int64_t>(2, static_cast<int64_t>(candidate.size()) / 3);
    if (distance <= limit && (best.empty() || distance < best_distance)) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

}  // namespace isotherm::cli
