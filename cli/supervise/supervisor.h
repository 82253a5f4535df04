#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "cli/supervise/log_line.h"
#include "cli/supervise/restart_policy.h"
#include "common/base/unique_fd.h"

namespace isotherm::cli {

struct ServiceSpec {
  std::string name;     // "gateway", as people see it
  std::string program;  // path
  std::vector<std::string> args;
  // Told to stop before all others, which stay up until it has drained.
  bool drains_first = false;
};

struct SupervisorOptions {
  std::vector<ServiceSpec> services;
  RestartOptions restart;
  std::chrono::milliseconds drain_timeout{300'000};  // for the one that drains first
  std::chrono::milliseconds stop_timeout{5'000};     // for the others; then SIGKILL
  uint64_t seed = 0;                                 // of the back-off's jitter
};

// Called on the thread in Supervisor::Run().
class SupervisorObserver {
 public:
  virtual ~SupervisorObserver() = default;
  virtual void OnStarted(absl::string_view service, int64_t pid) {}
  virtual void OnListening(absl::string_view service, absl::string_view address) {}
  // Mean load progress of all services, 0 to 1; until the first OnAllReady.
  virtual void OnProgress(double share) {}
  // Every service is ready; again after each recovery.
  virtual void OnAllReady() {}
  // `restart_in` is absent when the service is not started again.
  virtual void OnExit(absl::string_view service, absl::string_view how,
                      std::optional<std::chrono::milliseconds> restart_in) {}
  virtual void OnLog(const LogLine& line) {}
  virtual void OnStopping() {}
};

// Starts the services, reads what they announce on stdout ("listening ADDRESS", "progress X",
// "ready"), restarts those that end (RestartPolicy) and stops all of them.
class Supervisor {
 public:
  Supervisor(SupervisorOptions options, SupervisorObserver& observer);
  ~Supervisor();
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;

  // Blocks until everything has ended. OK after RequestStop() when all ended well; otherwise a
  // status that carries the exit code: of the service whose end was final, with its last error as
  // reason; 75 when the drain was cut; 130 after a second RequestStop(). Call once. The services
  // die with the thread that runs this.
  absl::Status Run();

  // From any thread. The first call stops in order (drain, then SIGTERM to the others), a second
  // one kills at once.
  void RequestStop();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace isotherm::cli
