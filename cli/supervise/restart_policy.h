#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <random>

#include "cli/supervise/exit_report.h"

namespace isotherm::cli {

struct RestartOptions {
  std::chrono::milliseconds first_delay{1000};  // of the second restart; the first is at once
  std::chrono::milliseconds max_delay{60'000};
  double jitter = 0.2;  // a delay is drawn from [1 - jitter, 1] of itself
  // A server that was never ready gives up after that many failures of one service: someone waits
  // in front of it. 0: never gives up.
  int max_failures_before_first_ready = 4;
};

// When one service is started again. Exit codes 64 (flags), 65 (bad model) and 78 (cannot fit) are
// final: the same start would end the same way; before the server was ever ready 71 (short of a
// resource) is final too, so that `serve` says so instead of looping. All else is restarted at
// once, then after 1, 2, 4 .. 60 s while the restarts end before they are ready.
class RestartPolicy {
 public:
  RestartPolicy(const RestartOptions& options, uint64_t seed) : options_(options), random_(seed) {}

  void OnReady() { failures_ = 0; }
  // The delay before the next start, or nullopt when the end is final.
  // `server_was_ready`: all services have been ready at one time.
  std::optional<std::chrono::milliseconds> OnExit(const ExitReport& report, bool server_was_ready);

 private:
  RestartOptions options_;
  std::mt19937_64 random_;
  int failures_ = 0;  // ends in a row, none of which followed a ready
};

}  // namespace isotherm::cli
