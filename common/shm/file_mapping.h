#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/file_identity.h"
#include "common/shm/shared_memory.h"

namespace isotherm::shm {

// A whole file, mapped shared: its pages are the page cache's, one copy for all processes. Byte 0
// lies on a multiple of 2 MiB, so that an offset and its address agree modulo a huge page.
//
// Unlike sealed memory a file can change under its mapping. What is looked for: another file, size
// or time of change than `wanted` (FailedPrecondition), here and whenever the owner asks
// IdentityOf() again. A file that becomes shorter makes an access fault: the process then ends with
// exit code 65 and says so, where another fault would be a crash.
//
// kReadWrite is for devices that pin writable memory only: it works on tmpfs and most others, but
// pinning it may not. The descriptor may be read-only; the file is then opened again, by the
// process's own rights: PermissionDenied when they do not suffice. Nobody writes through it; call
// MakeReadOnly() when it is pinned.
//
// `name` stands in messages.
absl::StatusOr<Mapping> MapFile(int fd, const FileIdentity& wanted, Access access,
                                const std::string& name);

// FailedPrecondition, naming what differs, unless `fd` is still the file `wanted`.
absl::Status CheckIdentity(int fd, const FileIdentity& wanted, const std::string& name);

// Whether the file lies in memory (tmpfs, ramfs, hugetlbfs), where pages cannot be written back.
bool LiesInMemory(int fd);

}  // namespace isotherm::shm
