#pragma once

#include <string>

namespace isotherm::cli {

// How a child process ended.
struct ExitReport {
  bool by_signal = false;
  int value = 0;  // exit code, or signal number when by_signal

  // "exit code 65", "signal 9 (Killed)".
  std::string Describe() const;
};

}  // namespace isotherm::cli
