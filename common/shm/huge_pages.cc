#include "common/shm/huge_pages.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <fstream>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25  // Linux 6.1
#endif

namespace isotherm::shm {
void TakeHugePages(int fd, const Mapping& mapping, int64_t offset, int64_t bytes) {
  for (int64_t at = offset; at + kHugePage <= offset + bytes; at += kHugePage) {
    // A range without any page is refused; one small page in it is enough.
    if (::posix_fallocate(fd, at, 4096) != 0) return;
    // A page that the host has no room for is no reason to stop; that it cannot do it at all is.
    if (::madvise(mapping.data() + at, static_cast<size_t>(kHugePage), MADV_COLLAPSE) != 0 &&
        errno == EINVAL) {
      return;
    }
  }
}

absl::Status ReservePages(int fd, const Mapping& mapping, int64_t offset, int64_t bytes,
                          absl::string_view label) {
  TakeHugePages(fd, mapping, offset, bytes);
  int error = 0;
  do {
    error = ::posix_fallocate(fd, offset, bytes);
  } while (error == EINTR);
  return error == 0 ? absl::OkStatus() : ReserveFailed(label, bytes, error);
}

int64_t HugePageBytes(const void* data, int64_t bytes, const std::string& smaps) {
  const auto start = reinterpret_cast<uintptr_t>(data);
  std::ifstream file(smaps);
  int64_t huge = 0;
  bool ours = false;
  for (std::string line; std::getline(file, line);) {
    uintptr_t first = 0, last = 0;
    int64_t kib = 0;
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " ", &first, &last) == 2) {
      ours = first < start + static_cast<uintptr_t>(bytes) && last > start;
    } else if (ours && std::sscanf(line.c_str(), "ShmemPmdMapped: %" SCNd64, &kib) == 1) {
      huge += kib * 1024;
    }
  }
  return std::min(huge, bytes);
}

}  // namespace isotherm::shm
