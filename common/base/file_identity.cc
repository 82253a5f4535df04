#include "common/base/file_identity.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace isotherm {

absl::StatusOr<FileIdentity> IdentityOf(int fd) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) {
    return absl::FailedPreconditionError(absl::StrCat("fstat: ", std::strerror(errno)));
  }
  if (!S_ISREG(info.st_mode)) {
    return absl::FailedPreconditionError("the descriptor is of no regular file");
  }
  return FileIdentity{
      .device = info.st_dev,
      .inode = info.st_ino,
      .bytes = info.st_size,
      .modified_ns = int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec};
}

}  // namespace isotherm
