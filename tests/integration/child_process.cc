#include "tests/integration/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <utility>

#include "common/base/check.h"

namespace isotherm::integration {

ChildProcess::ChildProcess(std::string name, std::vector<std::string> command, std::string log_path)
    : name_(std::move(name)), log_path_(std::move(log_path)) {
  int pipe_fds[2];
  ISOTHERM_CHECK(::pipe2(pipe_fds, O_CLOEXEC) == 0);
  out_.Reset(pipe_fds[0]);
  UniqueFd write_end(pipe_fds[1]);
  UniqueFd log(::open(log_path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  ISOTHERM_CHECK(log.valid());
  std::vector<char*> arguments;
  for (std::string& argument : command) arguments.push_back(argument.data());
  arguments.push_back(nullptr);
  pid_ = ::fork();
  ISOTHERM_CHECK(pid_ >= 0);
  if (pid_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::dup2(write_end.get(), STDOUT_FILENO);
    ::dup2(log.get(), STDERR_FILENO);
    ::execv(arguments[0], arguments.data());
    ::_exit(127);
  }
  reader_ = std::thread([this] { ReadLoop(); });
}

ChildProcess::~ChildProcess() {
  if (!WaitForExit(std::chrono::milliseconds(0)).has_value()) {
    Signal(SIGKILL);
    WaitForExit(std::chrono::seconds(10));
  }
  reader_.join();
}

void ChildProcess::ReadLoop() {
  std::string pending;
  char buffer[4096];
  while (true) {
    const ssize_t got = ::read(out_.get(), buffer, sizeof(buffer));
    if (got <= 0) break;
    pending.append(buffer, static_cast<size_t>(got));
    size_t end;
    while ((end = pending.find('\n')) != std::string::npos) {
      {
        std::lock_guard lock(mu_);
        lines_.push_back(pending.substr(0, end));
      }
      changed_.notify_all();
      pending.erase(0, end + 1);
    }
  }
  {
    std::lock_guard lock(mu_);
    closed_ = true;
  }
  changed_.notify_all();
}

std::optional<std::string> ChildProcess::WaitForLine(const std::string& prefix,
                                                     std::chrono::milliseconds timeout) {
  std::unique_lock lock(mu_);
  std::optional<std::string> found;
  changed_.wait_for(lock, timeout, [&] {
    for (const std::string& line : lines_) {
      if (line.rfind(prefix, 0) == 0) {
        found = line.substr(prefix.size());
        return true;
      }
    }
    return closed_;
  });
  return found;
}

void ChildProcess::Signal(int signal) {
  std::lock_guard lock(mu_);
  if (!status_.has_value()) ::kill(pid_, signal);
}

std::optional<int> ChildProcess::WaitForExit(std::chrono::milliseconds timeout) {
  {
    std::lock_guard lock(mu_);
    if (status_.has_value()) return status_;
  }
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
  pollfd poll_fd{pidfd.get(), POLLIN, 0};
  if (::poll(&poll_fd, 1, static_cast<int>(timeout.count())) <= 0) return std::nullopt;
  int raw = 0;
  std::lock_guard lock(mu_);
  if (::waitpid(pid_, &raw, 0) != pid_) return std::nullopt;
  status_ = WIFEXITED(raw) ? WEXITSTATUS(raw) : 128 + WTERMSIG(raw);
  return status_;
}

std::string ChildProcess::Log() const {
  std::ifstream file(log_path_);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace isotherm::integration
