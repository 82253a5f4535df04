#include "bench/probe/child_runner.h"

#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <thread>

namespace isotherm::probe {
namespace {

[[noreturn]] void ExecFigure(const Figure& figure, int stdout_fd) {
  for (const auto& [name, value] : figure.environment) ::setenv(name.c_str(), value.c_str(), 1);
  if (stdout_fd != STDOUT_FILENO) ::dup2(stdout_fd, STDOUT_FILENO);
  ::execl("/proc/self/exe", "probe", "--figure", figure.name.c_str(), static_cast<char*>(nullptr));
  ::_exit(127);
}

}  // namespace

ChildEnd RunInChild(const Figure& figure, std::chrono::seconds limit, int stdout_fd) {
  const auto start = std::chrono::steady_clock::now();
  const pid_t child = ::fork();
  if (child == 0) ExecFigure(figure, stdout_fd);
  ChildEnd end;
  if (child < 0) {
    end.exit_code = 127;
    return end;
  }
  int status = 0;
  while (::waitpid(child, &status, WNOHANG) == 0) {
    if (!end.timed_out && std::chrono::steady_clock::now() - start > limit) {
      end.timed_out = true;
      ::kill(child, SIGKILL);
    }
    // Coarse, so that this process takes no core from what is measured.
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  end.exit_code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  end.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return end;
}

}  // namespace isotherm::probe
