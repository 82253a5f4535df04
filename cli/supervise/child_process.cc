#include "cli/supervise/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"

namespace isotherm::cli {
namespace {

struct Pipe {
  UniqueFd read;
  UniqueFd write;
};

absl::Status ErrnoStatus(absl::string_view what) {
  return absl::ResourceExhaustedError(absl::StrCat(what, ": ", std::strerror(errno)));
}

absl::StatusOr<Pipe> MakePipe() {
  std::array<int, 2> fds;
  if (::pipe2(fds.data(), O_CLOEXEC) != 0) return ErrnoStatus("cannot make a pipe");
  return Pipe{UniqueFd(fds[0]), UniqueFd(fds[1])};
}

// Only async-signal-safe calls from here on: this runs between fork and exec, and the parent may
// have other threads.
[[noreturn]] void ExecChild(char* const* argv, int stdin_fd, int stdout_fd, int stderr_fd,
                            int error_fd, pid_t parent) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(70);  // the parent ended before the line above
  for (int number = 1; number < NSIG; ++number) {
    if (number != SIGKILL && number != SIGSTOP) ::signal(number, SIG_DFL);
  }
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::dup2(stdin_fd, STDIN_FILENO);
  ::dup2(stdout_fd, STDOUT_FILENO);
  ::dup2(stderr_fd, STDERR_FILENO);
  ::execv(argv[0], argv);
  const int error = errno;
  [[maybe_unused]] const ssize_t written = ::write(error_fd, &error, sizeof(error));
  ::_exit(70);
}

}  // namespace

std::string ExitReport::Describe() const {
  if (!by_signal) return absl::StrCat("exit code ", value);
  return absl::StrCat("signal ", value, " (", ::strsignal(value), ")");
}

absl::StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Start(
    const std::string& program, const std::vector<std::string>& args, bool pipe_stdin) {
  ISOTHERM_ASSIGN_OR_RETURN(Pipe out, MakePipe());
  ISOTHERM_ASSIGN_OR_RETURN(Pipe err, MakePipe());
  ISOTHERM_ASSIGN_OR_RETURN(Pipe exec_error, MakePipe());
  Pipe in;
  if (pipe_stdin) {
    ISOTHERM_ASSIGN_OR_RETURN(in, MakePipe());
  } else {
    in.read.Reset(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    if (!in.read.valid()) return ErrnoStatus("cannot open /dev/null");
  }
  std::vector<char*> argv;
  argv.push_back(const_cast<char*>(program.c_str()));
  for (const std::string& arg : args) argv.push_back(const_cast<char*>(arg.c_str()));
  argv.push_back(nullptr);

  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return ErrnoStatus("cannot start a process");
  if (pid == 0) {
    ExecChild(argv.data(), in.read.get(), out.write.get(), err.write.get(), exec_error.write.get(),
              parent);
  }
  ::setpgid(pid, pid);  // the child does it too; whoever is first

  std::unique_ptr<ChildProcess> child(new ChildProcess());
  child->pid_ = pid;
  child->pidfd_.Reset(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  out.write.Reset();
  err.write.Reset();
  exec_error.write.Reset();
  int error = 0;
  ssize_t got;
  do {
    got = ::read(exec_error.read.get(), &error, sizeof(error));
  } while (got < 0 && errno == EINTR);
  if (got == sizeof(error)) {
    child->Reap();
    return absl::NotFoundError(absl::StrCat("cannot run ", program, ": ", std::strerror(error)));
  }
  if (!child->pidfd_.valid()) return ErrnoStatus("cannot watch a process");
  ::fcntl(out.read.get(), F_SETFL, O_NONBLOCK);
  ::fcntl(err.read.get(), F_SETFL, O_NONBLOCK);
  child->stdin_ = std::move(in.write);
  child->stdout_ = std::move(out.read);
  child->stderr_ = std::move(err.read);
  return child;
}

ChildProcess::~ChildProcess() {
  if (reaped_) return;
  Signal(SIGKILL);
  Reap();
}

void ChildProcess::Signal(int signal_number) {
  if (!reaped_) ::kill(pid_, signal_number);
}

ExitReport ChildProcess::Reap() {
  ISOTHERM_CHECK(!reaped_);
  int status = 0;
  pid_t got;
  do {
    got = ::waitpid(pid_, &status, 0);
  } while (got < 0 && errno == EINTR);
  ISOTHERM_CHECK(got == pid_);
  reaped_ = true;
  if (WIFSIGNALED(status)) return {.by_signal = true, .value = WTERMSIG(status)};
  return {.by_signal = false, .value = WEXITSTATUS(status)};
}

}  // namespace isotherm::cli
