#include "cli/models/run_program.h"

#include <poll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "cli/supervise/child_process.h"
#include "common/base/status_macros.h"

namespace isotherm::cli {
namespace {

constexpr size_t kMaxKeptBytes = 4096;

absl::StatusOr<std::string> FindInPath(const std::string& program) {
  const char* path = std::getenv("PATH");
  for (absl::string_view dir : absl::StrSplit(path != nullptr ? path : "/usr/bin:/bin", ':')) {
    std::string candidate = absl::StrCat(dir.empty() ? "." : dir, "/", program);
    if (::access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return absl::NotFoundError(absl::StrCat("there is no program ", program));
}

// Appends what is there to the end that is kept. False at the end of the stream.
bool Keep(int fd, std::string& tail) {
  std::array<char, 4096> bytes;
  const ssize_t got = ::read(fd, bytes.data(), bytes.size());
  if (got > 0) {
    tail.append(bytes.data(), static_cast<size_t>(got));
    if (tail.size() > 2 * kMaxKeptBytes) tail.erase(0, tail.size() - kMaxKeptBytes);
    return true;
  }
  return got < 0 && (errno == EAGAIN || errno == EINTR);
}

}  // namespace

absl::Status RunProgram(const std::string& program, const std::vector<std::string>& args) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::string path, FindInPath(program));
  ISOTHERM_ASSIGN_OR_RETURN(const auto child, ChildProcess::Start(path, args));
  std::string out_tail;
  std::string err_tail;
  while (child->stdout_fd() >= 0 || child->stderr_fd() >= 0) {
    pollfd fds[2] = {{child->stdout_fd(), POLLIN, 0}, {child->stderr_fd(), POLLIN, 0}};
    if (::poll(fds, 2, -1) < 0) continue;
    if (fds[0].revents != 0 && !Keep(child->stdout_fd(), out_tail)) child->CloseStdout();
    if (fds[1].revents != 0 && !Keep(child->stderr_fd(), err_tail)) child->CloseStderr();
  }
  const ExitReport report = child->Reap();
  if (!report.by_signal && report.value == 0) return absl::OkStatus();
  const std::string tail(
      absl::StripAsciiWhitespace(absl::string_view(err_tail.empty() ? out_tail : err_tail)));
  const size_t line = tail.rfind('\n');
  return absl::UnknownError(absl::StrCat(program, " ended with ", report.Describe(), ": ",
                                         line == std::string::npos ? tail : tail.substr(line + 1)));
}

}  // namespace isotherm::cli
