#pragma once

#include "common/base/unique_fd.h"

namespace isotherm::cli {

// SIGINT, SIGTERM and SIGHUP as something to poll for. Construct before any thread: it blocks the
// signals in every thread to come (children get them unblocked) and ignores SIGPIPE. The mask is
// restored at the end.
class Interrupts {
 public:
  Interrupts();
  ~Interrupts();
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  // Readable while a signal waits.
  int fd() const { return fd_.get(); }
  // Takes one signal: its number, 0 when none waits.
  int Take();

 private:
  UniqueFd fd_;
};

}  // namespace isotherm::cli
