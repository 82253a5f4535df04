#pragma once

#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cli/supervise/child_process.h"

namespace isotherm::cli {

// A program under test: its output as it comes, its end.
class Command {
 public:
  Command(const std::string& program, const std::vector<std::string>& args) {
    auto child = ChildProcess::Start(program, args);
    if (child.ok()) child_ = *std::move(child);
  }

  bool started() const { return child_ != nullptr; }
  pid_t pid() const { return child_->pid(); }
  void Signal(int number) { child_->Signal(number); }
  const std::string& out() const { return out_; }
  const std::string& err() const { return err_; }

  // Reads until `done` holds; false when the program ends, or 20 s pass, before.
  bool ReadUntil(const std::function<bool()>& done, bool read_err = true) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!done()) {
      if (!ReadSome(deadline, read_err)) return done();
    }
    return true;
  }
  bool ReadUntilOut(const std::string& text) {
    return ReadUntil([&] { return out_.find(text) != std::string::npos; });
  }
  bool ReadUntilErr(const std::string& text) {
    return ReadUntil([&] { return err_.find(text) != std::string::npos; });
  }

  // The exit code, or 1000 + signal; reads to the end first.
  int Wait() {
    ReadUntil([this] { return child_->stdout_fd() < 0 && child_->stderr_fd() < 0; });
    const ExitReport report = child_->Reap();
    return report.by_signal ? 1000 + report.value : report.value;
  }

 private:
  static bool Read(int fd, std::string& text) {
    char bytes[4096];
    const ssize_t got = ::read(fd, bytes, sizeof(bytes));
    if (got > 0) text.append(bytes, static_cast<size_t>(got));
    return got > 0;
  }

  bool ReadSome(std::chrono::steady_clock::time_point deadline, bool read_err) {
    pollfd fds[2] = {{child_->stdout_fd(), POLLIN, 0},
                     {read_err ? child_->stderr_fd() : -1, POLLIN, 0}};
    if (fds[0].fd < 0 && fds[1].fd < 0) return false;
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0 || ::poll(fds, 2, static_cast<int>(left.count())) <= 0) return false;
    if (fds[0].revents != 0 && !Read(fds[0].fd, out_)) child_->CloseStdout();
    if (fds[1].revents != 0 && !Read(fds[1].fd, err_)) child_->CloseStderr();
    return true;
  }

  std::unique_ptr<ChildProcess> child_;
  std::string out_;
  std::string err_;
};

}  // namespace isotherm::cli
