#include "cli/serve/server_view.h"

#include <poll.h>

#include <chrono>
#include <ctime>
#include <ostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace isotherm::cli {
namespace {

// A pipe that polls writable takes PIPE_BUF bytes without blocking.
constexpr size_t kMaxLineBytes = 4000;

bool Writable(int fd) {
  if (fd < 0) return true;
  pollfd out{fd, POLLOUT, 0};
  return ::poll(&out, 1, 0) == 1 && (out.revents & POLLOUT) != 0;
}

std::string TimeOfDay() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  ::localtime_r(&now, &local);
  return absl::StrFormat("%02d:%02d:%02d", local.tm_hour, local.tm_min, local.tm_sec);
}

}  // namespace

ServerView::ServerView(Console& console, int64_t model_bytes, bool quiet)
    : console_(console), quiet_(quiet) {
  bar_.emplace(console_, "loading", model_bytes);
}

void ServerView::OnProgress(double share) {
  std::lock_guard lock(mu_);
  if (bar_.has_value() && !stopping_ && Writable(console_.err_fd)) bar_->UpdateShare(share);
}

void ServerView::OnAllReady() {
  std::lock_guard lock(mu_);
  if (bar_.has_value()) bar_->Finish();
  bar_.reset();
  if (was_ready_) PrintLocked("isotherm: all services are ready again");
  was_ready_ = true;
}

void ServerView::OnExit(absl::string_view service, absl::string_view how,
                        std::optional<std::chrono::milliseconds> restart_in) {
  std::lock_guard lock(mu_);
  if (stopping_) return;
  std::string line = absl::StrCat("isotherm: ", service, " ended with ", how);
  if (restart_in.has_value()) {
    absl::StrAppendFormat(&line, "; starting it again%s",
                          restart_in->count() == 0
                              ? std::string()
                              : absl::StrFormat(" in %.1f s", restart_in->count() / 1000.0));
  }
  PrintLocked(line);
}

void ServerView::OnLog(const LogLine& line) {
  std::lock_guard lock(mu_);
  const bool chatter = line.level == "trace" || line.level == "debug" || line.level == "info";
  // A service that stops is the other one's warning.
  if (quiet_ && (chatter || (stopping_ && line.level == "warning"))) return;
  if (!console_.err_is_terminal && !line.level.empty()) {
    PrintLocked(line.raw);
  } else if (line.level.empty()) {
    PrintLocked(absl::StrCat(line.service, ": ", line.message));
  } else {
    PrintLocked(absl::StrCat(TimeOfDay(), " ", line.service, " ", line.level, ": ", line.message));
  }
}

void ServerView::OnStopping() {
  std::lock_guard lock(mu_);
  if (bar_.has_value()) bar_->Hide();
  bar_.reset();
  stopping_ = true;
}

void ServerView::Print(absl::string_view line) {
  std::lock_guard lock(mu_);
  PrintLocked(line);
}

void ServerView::PrintLocked(absl::string_view line) {
  if (!Writable(console_.err_fd)) {
    ++lost_lines_;
    return;
  }
  if (bar_.has_value()) bar_->Hide();
  if (lost_lines_ > 0) {
    console_.err << "isotherm: " << lost_lines_ << " log lines were lost\n";
    lost_lines_ = 0;
  }
  console_.err << std::string(line.substr(0, kMaxLineBytes)) << "\n" << std::flush;
  console_.err.clear();  // a closed sink must not stop the server
}

}  // namespace isotherm::cli
