#include "common/shm/file_mapping.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/vfs.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"
#include "common/shm/bus_error.h"

namespace isotherm::shm {

absl::Status CheckIdentity(int fd, const FileIdentity& wanted, const std::string& name) {
  ISOTHERM_ASSIGN_OR_RETURN(const FileIdentity now, IdentityOf(fd));
  const auto bad = [&](absl::string_view what) {
    return absl::FailedPreconditionError(absl::StrCat(name, " ", what));
  };
  if (!now.SameFile(wanted)) {
    return bad("is another file than the one that was opened; start both workers again");
  }
  if (now.bytes != wanted.bytes) {
    return bad(absl::StrCat("has ", now.bytes, " bytes, had ", wanted.bytes,
                            " when it was opened; restore it and start again"));
  }
  if (now.modified_ns != wanted.modified_ns && !LiesInMemory(fd)) {
    return bad("was changed since it was opened; restore it and start again");
  }
  return absl::OkStatus();
}

absl::StatusOr<Mapping> MapFile(int fd, const FileIdentity& wanted, const std::string& name,
                                const MapFileOptions& options) {
  ISOTHERM_RETURN_IF_ERROR(CheckIdentity(fd, wanted, name));
  // What mprotect() may allow later is what the descriptor allows at mmap().
  UniqueFd writable;
  if (options.may_be_opened && LiesInMemory(fd)) {
    writable.Reset(::open(absl::StrCat("/proc/self/fd/", fd).c_str(), O_RDWR | O_CLOEXEC));
  }
  ISOTHERM_ASSIGN_OR_RETURN(Mapping mapping, MapWhole(writable.valid() ? writable.get() : fd,
                                                      wanted.bytes, Access::kReadOnly));
  mapping.ExplainFaults(name);
  return mapping;
}

bool LiesInMemory(int fd) {
  struct statfs info {};
  if (::fstatfs(fd, &info) != 0) return false;
  constexpr long kHugetlbfs = 0x958458f6;  // HUGETLBFS_MAGIC, absent from old headers
  return info.f_type == TMPFS_MAGIC || info.f_type == RAMFS_MAGIC || info.f_type == kHugetlbfs;
}

}  // namespace isotherm::shm
