#pragma once

#include <chrono>
#include <string>

#include "bench/probe/figure.h"

namespace isotherm::probe {

struct ChildEnd {
  bool timed_out = false;
  int exit_code = 0;  // 128 + signal when a signal ended it
  double seconds = 0;
};

// Runs `<this program> --figure <name>` with `stdout_fd` as its stdout and waits for its end, or
// kills it at the limit.
ChildEnd RunInChild(const Figure& figure, std::chrono::seconds limit, int stdout_fd);

}  // namespace isotherm::probe
