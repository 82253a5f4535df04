#include "cli/supervise/supervised_service.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/base/status_macros.h"

namespace isotherm::cli {
namespace {

// Reads what is there. False at the end of the stream.
bool ReadAvailable(int fd, LineBuffer& lines, const LineBuffer::OnLine& on_line) {
  std::array<char, 8192> bytes;
  while (true) {
    const ssize_t got = ::read(fd, bytes.data(), bytes.size());
    if (got > 0) {
      lines.Append(absl::string_view(bytes.data(), static_cast<size_t>(got)), on_line);
      if (static_cast<size_t>(got) < bytes.size()) return true;
      continue;
    }
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return true;
    lines.Finish(on_line);
    return false;
  }
}

}  // namespace

absl::Status SupervisedService::Start() {
  restart_at.reset();
  ready_ = false;
  progress_ = 0;
  last_error_.clear();
  stdout_lines_ = LineBuffer();
  stderr_lines_ = LineBuffer();
  ISOTHERM_ASSIGN_OR_RETURN(child_, ChildProcess::Start(spec_.program, spec_.args));
  return absl::OkStatus();
}

void SupervisedService::ReadStdout(SupervisorObserver& observer) {
  if (child_ == nullptr || child_->stdout_fd() < 0) return;
  const bool open = ReadAvailable(child_->stdout_fd(), stdout_lines_, [&](absl::string_view line) {
    HandleAnnouncement(line, observer);
  });
  if (!open) child_->CloseStdout();
}

void SupervisedService::ReadStderr(SupervisorObserver& observer) {
  if (child_ == nullptr || child_->stderr_fd() < 0) return;
  const bool open = ReadAvailable(child_->stderr_fd(), stderr_lines_, [&](absl::string_view line) {
    const LogLine record = ParseLogLine(spec_.name, line);
    // Services log their reason last; a broken invariant or a loader's complaint is plain text.
    if (IsError(record) || (record.level.empty() && last_error_.empty())) {
      last_error_ = record.message;
    }
    observer.OnLog(record);
  });
  if (!open) child_->CloseStderr();
}

ExitReport SupervisedService::Reap(SupervisorObserver& observer) {
  const ExitReport report = child_->Reap();
  ReadStdout(observer);
  ReadStderr(observer);
  child_.reset();
  ready_ = false;
  if (!report.by_signal) {
    // The exit code is told apart from the reason.
    last_error_ =
        std::string(absl::StripSuffix(last_error_, absl::StrCat(" (exit ", report.value, ")")));
  }
  return report;
}

void SupervisedService::HandleAnnouncement(absl::string_view line, SupervisorObserver& observer) {
  if (absl::ConsumePrefix(&line, "listening ")) {
    observer.OnListening(spec_.name, line);
  } else if (absl::ConsumePrefix(&line, "progress ")) {
    double share = 0;
    if (absl::SimpleAtod(line, &share) && std::isfinite(share)) {
      progress_ = std::clamp(share, 0.0, 1.0);
    }
  } else if (line == "ready") {
    ready_ = true;
    policy_.OnReady();
  }
}

}  // namespace isotherm::cli
