#pragma once

#include <optional>
#include <string>

#include "cli/serve/interrupts.h"

namespace isotherm::cli {

// Lines from a descriptor, with signals noticed while waiting.
class LineReader {
 public:
  LineReader(int fd, Interrupts& interrupts) : fd_(fd), interrupts_(interrupts) {}

  struct Input {
    std::optional<std::string> line;  // absent at the end of the input, or when a signal came
    int signal = 0;
  };
  // Blocks. Lines over 1 MiB are cut there.
  Input Next();

 private:
  std::optional<std::string> TakeLine();

  int fd_;
  Interrupts& interrupts_;
  std::string buffer_;
  bool ended_ = false;
};

}  // namespace isotherm::cli
