#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace isotherm::shm {

inline constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

// What the host allows this process to take now, in bytes.
struct MemoryLimits {
  int64_t available = kNoLimit;    // MemAvailable of /proc/meminfo
  int64_t cgroup_free = kNoLimit;  // the tightest memory limit above us, less what is charged to it
  int64_t file_size = kNoLimit;    // RLIMIT_FSIZE; passing it is a signal, not an error
};

// Reads the limits. What cannot be read is kNoLimit. `cgroup_root` and `proc_root` are replaced in
// tests.
MemoryLimits ReadMemoryLimits(absl::string_view proc_root = "/proc",
                              absl::string_view cgroup_root = "/sys/fs/cgroup");

// ResourceExhausted with exit code kShortage and both numbers in the text unless `bytes` more of
// shared memory fit. The kernel's own answer to too little would be SIGBUS, SIGXFSZ or the OOM
// killer, so this is asked first. `what` names the memory: "the arena".
absl::Status CheckMemoryFor(absl::string_view what, int64_t bytes, const MemoryLimits& limits);

}  // namespace isotherm::shm
