#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "cli/supervise/supervisor.h"
#include "cli/ui/console.h"
#include "cli/ui/progress_bar.h"

namespace isotherm::cli {

// Shows on stderr what a server's supervisor reports: load progress, the services' log records, and
// restarts. A sink that takes nothing more loses lines; the services never wait for it.
// Thread-safe.
class ServerView final : public SupervisorObserver {
 public:
  // `model_bytes`: size of the file that loads. `quiet`: of the log only warnings and errors.
  ServerView(Console& console, int64_t model_bytes, bool quiet);

  void OnProgress(double share) override;
  void OnAllReady() override;
  void OnExit(absl::string_view service, absl::string_view how,
              std::optional<std::chrono::milliseconds> restart_in) override;
  void OnLog(const LogLine& line) override;
  void OnStopping() override;

  // One line, whole, among those of the services.
  void Print(absl::string_view line);

 private:
  void PrintLocked(absl::string_view line);

  Console& console_;
  const bool quiet_;
  std::mutex mu_;
  std::optional<ProgressBar> bar_;  // until the first OnAllReady
  bool was_ready_ = false;
  bool stopping_ = false;
  int64_t lost_lines_ = 0;
};

}  // namespace isotherm::cli
