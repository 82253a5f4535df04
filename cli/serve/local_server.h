#pragma once

#include <atomic>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "cli/config/serve_options.h"
#include "cli/supervise/run_dir.h"
#include "cli/supervise/server_record.h"
#include "cli/supervise/supervisor.h"
#include "common/base/unique_fd.h"

namespace isotherm::cli {

struct LocalServerOptions {
  ServeOptions serve;
  std::filesystem::path model;
  std::filesystem::path program_dir;
  // True for `serve`: the server writes serve.json and keeps its plans in the state folder, of
  // which it is the only one. False: everything is gone with the server.
  bool lasting = true;
  RestartOptions restart;
};

// The four services of this host under a supervisor thread, with their run folder and record. All
// is stopped and removed when the object is destroyed. Thread-safe after Start().
class LocalServer {
 public:
  // ResourceExhausted (71) when a lasting server already uses the state folder. `observer` is
  // called on the supervisor's thread and outlives the server.
  static absl::StatusOr<std::unique_ptr<LocalServer>> Start(const LocalServerOptions& options,
                                                            SupervisorObserver& observer);
  ~LocalServer();
  LocalServer(const LocalServer&) = delete;
  LocalServer& operator=(const LocalServer&) = delete;

  // Readable when ready() or finished() has changed since the last AckEvent().
  int event_fd() const { return event_fd_.get(); }
  void AckEvent();
  bool ready() const { return ready_; }
  bool finished() const { return finished_; }
  // The supervisor's result; valid once finished().
  absl::Status result() const;

  void RequestStop();
  ServerRecord record() const;

 private:
  class Tracker;
  LocalServer() = default;
  void Notify();

  LocalServerOptions options_;
  UniqueFd state_lock_;
  std::unique_ptr<RunDir> run_dir_;
  UniqueFd event_fd_;
  std::atomic<bool> ready_{false};
  std::atomic<bool> finished_{false};
  mutable std::mutex mu_;
  ServerRecord record_;  // guarded by mu_
  absl::Status result_;  // guarded by mu_
  std::unique_ptr<Tracker> tracker_;
  std::unique_ptr<Supervisor> supervisor_;
  std::jthread thread_;  // joined before what it uses is destroyed
};

}  // namespace isotherm::cli
