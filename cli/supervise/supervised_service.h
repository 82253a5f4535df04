#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "cli/supervise/child_process.h"
#include "cli/supervise/line_buffer.h"
#include "cli/supervise/supervisor.h"

namespace isotherm::cli {

// One service of a Supervisor: its present process, if any, and what is known of it.
class SupervisedService {
 public:
  SupervisedService(ServiceSpec spec, const RestartOptions& restart, uint64_t seed)
      : spec_(std::move(spec)), policy_(restart, seed) {}

  absl::Status Start();
  // Reads what the process wrote; closes a pipe at its end.
  void ReadStdout(SupervisorObserver& observer);
  void ReadStderr(SupervisorObserver& observer);
  // Call when exit_fd() is readable: the last output, then the end.
  ExitReport Reap(SupervisorObserver& observer);

  const ServiceSpec& spec() const { return spec_; }
  RestartPolicy& policy() { return policy_; }
  ChildProcess* child() { return child_.get(); }
  bool running() const { return child_ != nullptr; }
  bool ready() const { return ready_; }
  double progress() const { return ready_ ? 1.0 : progress_; }
  const std::string& last_error() const { return last_error_; }

  // Set while the service waits to be started again.
  std::optional<std::chrono::steady_clock::time_point> restart_at;

 private:
  void HandleAnnouncement(absl::string_view line, SupervisorObserver& observer);

  ServiceSpec spec_;
  RestartPolicy policy_;
  std::unique_ptr<ChildProcess> child_;
  LineBuffer stdout_lines_;
  LineBuffer stderr_lines_;
  bool ready_ = false;
  double progress_ = 0;
  std::string last_error_;
};

}  // namespace isotherm::cli
