#pragma once

#include <sys/types.h>

#include <cstdint>

namespace isotherm::shm {

// A pid alone may be reused; with its start time it names one process of this PID namespace.
struct ProcessIdentity {
  int64_t pid = 0;
  uint64_t start_ticks = 0;  // field 22 of /proc/PID/stat, clock ticks since boot
  bool operator==(const ProcessIdentity&) const = default;
};

ProcessIdentity OwnIdentity();

// What `pid`, a number of our PID namespace, is now; start_ticks 0 when it cannot be read.
ProcessIdentity ProcessIdentityOf(pid_t pid);

// True when `pid` is known to live in our own PID namespace, so that its own number is `pid` too.
bool SharesPidNamespace(pid_t pid);

}  // namespace isotherm::shm
