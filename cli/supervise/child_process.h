#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cli/supervise/exit_report.h"
#include "common/base/unique_fd.h"

namespace isotherm::cli {

// One child process in a process group of its own, with stdin from /dev/null (or a pipe) and pipes
// for stdout and stderr. The kernel kills it when the thread that started it ends, so it cannot be
// orphaned. Destroying the object kills (SIGKILL) and reaps a child that still runs. Not
// thread-safe; start children from the thread that will watch them.
class ChildProcess {
 public:
  // `program` is a path (no search in PATH). NotFound when it cannot be executed, with the reason;
  // ResourceExhausted when no process or pipe can be made.
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Start(const std::string& program,
                                                             const std::vector<std::string>& args,
                                                             bool pipe_stdin = false);
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const { return pid_; }
  int exit_fd() const { return pidfd_.get(); }     // readable once the child has ended
  int stdin_fd() const { return stdin_.get(); }    // blocking; -1 without pipe_stdin
  int stdout_fd() const { return stdout_.get(); }  // non-blocking
  int stderr_fd() const { return stderr_.get(); }  // non-blocking
  void CloseStdout() { stdout_.Reset(); }
  void CloseStderr() { stderr_.Reset(); }
  bool running() const { return !reaped_; }

  void Signal(int signal_number);
  // Blocks until the child has ended; at once when exit_fd() is readable. Call once.
  ExitReport Reap();

 private:
  ChildProcess() = default;

  pid_t pid_ = -1;
  bool reaped_ = false;
  UniqueFd pidfd_;
  UniqueFd stdin_;
  UniqueFd stdout_;
  UniqueFd stderr_;
};

}  // namespace isotherm::cli
