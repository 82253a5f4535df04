#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/file_identity.h"
#include "common/shm/shared_memory.h"

namespace isotherm::shm {

// A whole file, mapped shared and read-only: its pages are the page cache's, one copy for all
// processes. Byte 0 lies on a multiple of 2 MiB, so that an offset and its address agree modulo a
// huge page.
//
// Unlike sealed memory a file can change under its mapping. What is looked for, here and whenever
// the owner calls CheckIdentity() again: another file or size than `wanted`, and on a disk another
// time of change. (In memory that time says nothing: pinning a page for writing moves it.) A file
// that becomes shorter makes an access fault: the process then ends with exit code 65 and says so,
// where another fault would be a crash. `name` stands in messages.
struct MapFileOptions {
  // For devices that pin writable memory only: if the file lies in memory and this process may
  // write it, mprotect() may open the mapping for writing while it is pinned. Elsewhere pinning for
  // writing would fail, and the mapping cannot be opened.
  bool may_be_opened = false;
};
absl::StatusOr<Mapping> MapFile(int fd, const FileIdentity& wanted, const std::string& name,
                                const MapFileOptions& options = {});

// FailedPrecondition, naming what differs, unless `fd` is still the file `wanted`.
absl::Status CheckIdentity(int fd, const FileIdentity& wanted, const std::string& name);

// Whether the file lies in memory (tmpfs, ramfs, hugetlbfs), where pages are never written back.
bool LiesInMemory(int fd);

}  // namespace isotherm::shm
