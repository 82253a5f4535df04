#pragma once

#include <sys/types.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "common/base/unique_fd.h"

namespace isotherm::integration {

// One real binary under test. Reads its stdout lines ("listening ADDR", "ready"); its log goes to a
// file. The destructor kills and reaps it.
class ChildProcess {
 public:
  ChildProcess(std::string name, std::vector<std::string> command, std::string log_path);
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // The rest of the first stdout line that starts with `prefix`; nullopt when the process ended or
  // the time is over.
  std::optional<std::string> WaitForLine(const std::string& prefix,
                                         std::chrono::milliseconds timeout);

  void Signal(int signal);
  // Exit status as a shell shows it (128 + n for a signal); nullopt when it still runs after
  // `timeout`.
  std::optional<int> WaitForExit(std::chrono::milliseconds timeout);

  pid_t pid() const { return pid_; }
  const std::string& name() const { return name_; }
  std::string Log() const;

 private:
  void ReadLoop();

  std::string name_;
  std::string log_path_;
  pid_t pid_ = -1;
  UniqueFd out_;
  std::mutex mu_;
  std::condition_variable changed_;
  std::vector<std::string> lines_;
  bool closed_ = false;
  std::optional<int> status_;
  std::thread reader_;
};

}  // namespace isotherm::integration
