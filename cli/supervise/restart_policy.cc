#include "cli/supervise/restart_policy.h"

#include <algorithm>

#include "common/base/exit_code.h"

namespace isotherm::cli {
namespace {

bool IsFinal(const ExitReport& report, bool server_was_ready) {
  if (report.by_signal) return false;
  switch (static_cast<ExitCode>(report.value)) {
    case ExitCode::kUsage:
    case ExitCode::kBadData:
    case ExitCode::kCannotFit:
      return true;
    case ExitCode::kShortage:
      return !server_was_ready;
    default:
      return false;
  }
}

}  // namespace

std::optional<std::chrono::milliseconds> RestartPolicy::OnExit(const ExitReport& report,
                                                               bool server_was_ready) {
  if (IsFinal(report, server_was_ready)) return std::nullopt;
  ++failures_;
  if (!server_was_ready && options_.max_failures_before_first_ready > 0 &&
      failures_ >= options_.max_failures_before_first_ready) {
    return std::nullopt;
  }
  if (failures_ == 1) return std::chrono::milliseconds(0);
  const int doublings = std::min(failures_ - 2, 30);
  const double full = std::min(static_cast<double>(options_.first_delay.count()) *
                                   static_cast<double>(int64_t{1} << doublings),
                               static_cast<double>(options_.max_delay.count()));
  const double share = std::uniform_real_distribution<double>(1.0 - options_.jitter, 1.0)(random_);
  return std::chrono::milliseconds(static_cast<int64_t>(full * share));
}

}  // namespace isotherm::cli
