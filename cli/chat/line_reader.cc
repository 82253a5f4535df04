#include "cli/chat/line_reader.h"

#include <poll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

namespace isotherm::cli {
namespace {
constexpr size_t kMaxLineBytes = 1 << 20;
}  // namespace

std::optional<std::string> LineReader::TakeLine() {
  const size_t newline = buffer_.find('\n');
  if (newline != std::string::npos) {
    std::string line = buffer_.substr(0, newline);
    buffer_.erase(0, newline + 1);
    return line;
  }
  if (buffer_.size() >= kMaxLineBytes || (ended_ && !buffer_.empty())) {
    return std::exchange(buffer_, std::string());
  }
  return std::nullopt;
}

LineReader::Input LineReader::Next() {
  while (true) {
    if (auto line = TakeLine(); line.has_value()) return {.line = std::move(line)};
    if (ended_) return {};
    pollfd fds[2] = {{fd_, POLLIN, 0}, {interrupts_.fd(), POLLIN, 0}};
    if (::poll(fds, 2, -1) < 0) continue;
    if (fds[1].revents != 0) {
      if (const int signal = interrupts_.Take(); signal != 0) return {.signal = signal};
    }
    if (fds[0].revents == 0) continue;
    std::array<char, 4096> bytes;
    const ssize_t got = ::read(fd_, bytes.data(), bytes.size());
    if (got > 0) {
      buffer_.append(bytes.data(), static_cast<size_t>(got));
    } else if (got == 0 || (errno != EINTR && errno != EAGAIN)) {
      ended_ = true;
    }
  }
}

}  // namespace isotherm::cli
