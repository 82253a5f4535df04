#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/shm/shared_memory.h"

namespace isotherm::shm {

inline constexpr int64_t kHugePage = int64_t{2} << 20;

// Reserves the pages of bytes [offset, offset + bytes) of the memfd that `mapping` maps whole and
// writable, offset a multiple of 2 MiB: in 2 MiB pages as far as the host gives them, else in small
// ones. A 2 MiB page needs Linux 6.1 and free memory in one piece; the host's shmem_enabled may
// stand at "never", not at "deny". The calling thread is the one that touches first; any number of
// threads may reserve different ranges. ResourceExhausted with exit code kShortage.
absl::Status ReservePages(int fd, const Mapping& mapping, int64_t offset, int64_t bytes,
                          absl::string_view label);

// The 2 MiB part of ReservePages() alone, of a memfd or a file on tmpfs: best effort, and what does
// not become a 2 MiB page is not reserved.
void TakeHugePages(int fd, const Mapping& mapping, int64_t offset, int64_t bytes);

// Bytes of the mapping that this process maps in 2 MiB pages (ShmemPmdMapped). `smaps` is replaced
// in tests.
int64_t HugePageBytes(const void* data, int64_t bytes,
                      const std::string& smaps = "/proc/self/smaps");

}  // namespace isotherm::shm
