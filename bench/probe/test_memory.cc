#include "bench/probe/test_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "bench/probe/pinned_threads.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25  // Linux 6.1
#endif

namespace isotherm::probe {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

void TestMemory::Fail(const std::string& what) { error_ = what + ": " + std::strerror(errno); }

bool TestMemory::Open(const Options& options) {
  if (options.kind == Kind::kAnonymous) return true;
  if (options.kind == Kind::kSealedMemfd) {
    fd_ = ::memfd_create("probe", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  } else {
    std::string path = options.directory + "/probe-XXXXXX";
    fd_ = ::mkostemp(path.data(), O_CLOEXEC);
    if (fd_ >= 0) ::unlink(path.c_str());
  }
  if (fd_ < 0) {
    Fail("open");
    return false;
  }
  const int error = options.reserve_first           ? ::posix_fallocate(fd_, 0, bytes_)
                    : ::ftruncate(fd_, bytes_) != 0 ? errno
                                                    : 0;
  if (error != 0) {
    errno = error;
    Fail("reserve");
    return false;
  }
  if (options.kind == Kind::kSealedMemfd &&
      ::fcntl(fd_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    Fail("seal");
    return false;
  }
  return true;
}

TestMemory::TestMemory(const Options& options) : bytes_(options.bytes / kHugePage * kHugePage) {
  if (!Open(options) || !Map(options)) return;
  if (options.collapse_first) {
    // A range without any page is refused; one page is enough.
    for (int64_t at = 0; fd_ >= 0 && at < bytes_; at += kHugePage) ::posix_fallocate(fd_, at, 4096);
    Collapse();
  }
  Fill();
  if (options.collapse) Collapse();
}

bool TestMemory::Map(const Options& options) {
  const size_t bytes = static_cast<size_t>(bytes_);
  reserved_bytes_ = bytes_ + kHugePage;
  reserved_ = ::mmap(nullptr, static_cast<size_t>(reserved_bytes_), PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved_ == MAP_FAILED) {
    reserved_ = nullptr;
    Fail("mmap");
    return false;
  }
  const uintptr_t address = (reinterpret_cast<uintptr_t>(reserved_) + kHugePage - 1) /
                            static_cast<uintptr_t>(kHugePage) * static_cast<uintptr_t>(kHugePage);
  void* const wanted = reinterpret_cast<void*>(address);
  const int flags = fd_ < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED : MAP_SHARED | MAP_FIXED;
  if (::mmap(wanted, bytes, PROT_READ | PROT_WRITE, flags, fd_, 0) == MAP_FAILED) {
    Fail("mmap");
    return false;
  }
  if (options.advise_huge && ::madvise(wanted, bytes, MADV_HUGEPAGE) != 0) {
    note_ = std::string("MADV_HUGEPAGE: ") + std::strerror(errno);
  }
  data_ = static_cast<uint64_t*>(wanted);
  return true;
}

void TestMemory::Fill() {
  const auto start = std::chrono::steady_clock::now();
  std::atomic<int64_t> cursor{0};
  RunPinned(FirstCpus(1024), [&](int) {
    constexpr int64_t kStep = kHugePage / kBlockBytes;
    const int64_t blocks = bytes_ / kBlockBytes;
    for (int64_t b; (b = cursor.fetch_add(kStep)) < blocks;) {
      for (int64_t i = b; i < std::min(blocks, b + kStep); ++i) {
        std::fill_n(data_ + i * kBlockWords, kBlockWords, BlockWord(i));
      }
    }
  });
  fill_s_ = SecondsSince(start);
}

void TestMemory::Collapse() {
  const auto start = std::chrono::steady_clock::now();
  std::atomic<int64_t> cursor{0};
  std::atomic<int> failure{0};
  RunPinned(FirstCpus(1024), [&](int) {
    constexpr int64_t kPiece = 16 * kHugePage;
    for (int64_t at; (at = cursor.fetch_add(kPiece)) < bytes_;) {
      if (::madvise(reinterpret_cast<char*>(data_) + at,
                    static_cast<size_t>(std::min(kPiece, bytes_ - at)), MADV_COLLAPSE) != 0) {
        failure.store(errno);
      }
    }
  });
  collapse_s_ = SecondsSince(start);
  if (failure != 0) note_ += std::string("MADV_COLLAPSE: ") + std::strerror(failure);
}

TestMemory::~TestMemory() {
  if (reserved_ != nullptr) ::munmap(reserved_, static_cast<size_t>(reserved_bytes_));
  if (fd_ >= 0) ::close(fd_);
}

TestMemory::HugeBytes TestMemory::huge_bytes() const {
  HugeBytes huge;
  std::ifstream smaps("/proc/self/smaps");
  bool ours = false;
  for (std::string line; std::getline(smaps, line);) {
    uintptr_t first = 0, last = 0;
    int64_t kib = 0;
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " ", &first, &last) == 2) {
      const uintptr_t start = reinterpret_cast<uintptr_t>(data_);
      ours = first < start + static_cast<uintptr_t>(bytes_) && last > start;
    } else if (ours && std::sscanf(line.c_str(), "AnonHugePages: %" SCNd64, &kib) == 1) {
      huge.anonymous += kib * 1024;
    } else if (ours && std::sscanf(line.c_str(), "ShmemPmdMapped: %" SCNd64, &kib) == 1) {
      huge.shmem_mapped += kib * 1024;
    } else if (ours && std::sscanf(line.c_str(), "FilePmdMapped: %" SCNd64, &kib) == 1) {
      huge.file_mapped += kib * 1024;
    }
  }
  return huge;
}

}  // namespace isotherm::probe
