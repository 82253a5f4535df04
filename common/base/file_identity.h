#pragma once

#include <cstdint>

#include "absl/status/statusor.h"

namespace isotherm {

// Which file a descriptor is open on, and whether its content was touched since: two descriptors of
// one unchanged file are equal, on one host.
struct FileIdentity {
  uint64_t device = 0;
  uint64_t inode = 0;
  int64_t bytes = 0;
  int64_t modified_ns = 0;  // since 1970; writing through a mapping may move it late
  bool operator==(const FileIdentity&) const = default;

  bool SameFile(const FileIdentity& other) const {
    return device == other.device && inode == other.inode;
  }
};

// FailedPrecondition when `fd` is no regular file.
absl::StatusOr<FileIdentity> IdentityOf(int fd);

}  // namespace isotherm
