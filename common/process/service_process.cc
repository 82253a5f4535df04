#include "common/process/service_process.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <thread>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/check.h"
#include "common/base/exit_code.h"
#include "common/base/unique_fd.h"
#include "common/process/log.h"
#include "common/threading/cores.h"
#include "common/threading/cpu_list.h"

namespace isotherm {
namespace {

sigset_t ShutdownSet() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGHUP);
  return set;
}

void WriteLine(const std::string& line) {
  std::fwrite(line.data(), 1, line.size(), stdout);
  std::fflush(stdout);
}

}  // namespace

ShutdownSignal::ShutdownSignal() {
  const sigset_t set = ShutdownSet();
  ISOTHERM_CHECK(pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0);
  ::signal(SIGPIPE, SIG_IGN);
  trigger_fd_ = ::eventfd(0, EFD_CLOEXEC);
  ISOTHERM_CHECK(trigger_fd_ >= 0);
}

ShutdownSignal::~ShutdownSignal() { ::close(trigger_fd_); }

int ShutdownSignal::Wait() {
  const sigset_t set = ShutdownSet();
  UniqueFd signals(::signalfd(-1, &set, SFD_CLOEXEC));
  ISOTHERM_CHECK(signals.valid());
  std::array<pollfd, 2> fds = {{{signals.get(), POLLIN, 0}, {trigger_fd_, POLLIN, 0}}};
  while (::poll(fds.data(), fds.size(), -1) < 0) {
  }
  if ((fds[0].revents & POLLIN) == 0) return 0;
  signalfd_siginfo info{};
  if (::read(signals.get(), &info, sizeof(info)) != sizeof(info)) return 0;
  // Whoever signals twice does not want to wait for the drain.
  std::thread([fd = signals.Release()] {
    signalfd_siginfo again{};
    if (::read(fd, &again, sizeof(again)) > 0) ::_exit(130);
  }).detach();
  return static_cast<int>(info.ssi_signo);
}

void ShutdownSignal::Trigger() {
  const uint64_t one = 1;
  ISOTHERM_CHECK(::write(trigger_fd_, &one, sizeof(one)) == sizeof(one));
}

bool DieWithParent() {
  int set_before_exec = 0;
  ::prctl(PR_GET_PDEATHSIG, &set_before_exec);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  // A parent that set the signal itself cannot have been missed; it may be a container's process 1.
  return set_before_exec != 0 || ::getppid() != 1;
}

absl::Status ConfineProcess(absl::string_view cpus) {
  if (cpus.empty()) return absl::OkStatus();
  const std::optional<std::vector<int>> list = ParseCpuList(cpus);
  if (!list.has_value()) {
    return WithExitCode(absl::InvalidArgumentError(
                            absl::StrCat("--cpus ", cpus, "; want CPU numbers such as 0-3 or 0,2")),
                        ExitCode::kUsage);
  }
  const std::string allowed = FormatCpuList(AllowedCpus());
  if (!BindProcess(*list)) {
    return WithExitCode(absl::InvalidArgumentError(
                            absl::StrCat("--cpus ", cpus, "; this process may use ", allowed)),
                        ExitCode::kUsage);
  }
  return absl::OkStatus();
}

void AnnounceListening(absl::string_view address) {
  WriteLine(absl::StrFormat("listening %s\n", address));
}
void AnnounceReady() { WriteLine("ready\n"); }
void AnnounceProgress(double share) { WriteLine(absl::StrFormat("progress %.3f\n", share)); }

int ExitWith(const absl::Status& status) {
  const ExitCode code = ExitCodeOf(status);
  if (code != ExitCode::kOk) {
    LogError("{} (exit {})", std::string(status.message()), static_cast<int>(code));
  }
  return static_cast<int>(code);
}

std::string RandomId() {
  std::array<char, 16> bytes;
  ISOTHERM_CHECK(::getrandom(bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
  return absl::BytesToHexString(absl::string_view(bytes.data(), bytes.size()));
}

}  // namespace isotherm
