#include "common/shm/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"

namespace isotherm::shm {
namespace {

constexpr int64_t kPage = 4096;
constexpr int64_t kMappingAlignment = int64_t{2} << 20;  // of a huge page
constexpr int kSizeSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

// Checked and empty; not sealed yet.
absl::StatusOr<UniqueFd> CreateMemory(absl::string_view label, int64_t bytes,
                                      const MemoryLimits& limits) {
  if (bytes <= 0) {
    return absl::InvalidArgumentError(absl::StrCat(label, ": ", bytes, " bytes; want at least 1"));
  }
  ISOTHERM_RETURN_IF_ERROR(CheckMemoryFor(label, bytes, limits));
  UniqueFd fd(::memfd_create(std::string(label).c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return ReserveFailed(label, bytes, errno);
  return fd;
}

absl::Status SealSize(absl::string_view label, int fd) {
  if (::fcntl(fd, F_ADD_SEALS, kSizeSeals) == 0) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("cannot seal shared memory of ", label, ": ", std::strerror(errno)));
}

}  // namespace

absl::Status ReserveFailed(absl::string_view label, int64_t bytes, int error) {
  const std::string text = absl::StrCat("cannot reserve ", bytes, " bytes of shared memory for ",
                                        label, ": ", std::strerror(error));
  return WithExitCode(
      absl::ResourceExhaustedError(absl::StrCat(text, "; free memory or take a smaller model")),
      ExitCode::kShortage);
}

Mapping::Mapping(Mapping&& other) noexcept { *this = std::move(other); }

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(reserved_, other.reserved_);
  std::swap(reserved_bytes_, other.reserved_bytes_);
  std::swap(explanation_, other.explanation_);
  return *this;
}

Mapping::~Mapping() {
  if (reserved_ != nullptr) ::munmap(reserved_, reserved_bytes_);
}

absl::Status Mapping::MakeReadOnly() {
  if (::mprotect(data_, static_cast<size_t>(size_), PROT_READ) != 0) {
    return absl::InternalError(absl::StrCat("mprotect: ", std::strerror(errno)));
  }
  return absl::OkStatus();
}

void Mapping::ExplainFaults(const std::string& name) {
  explanation_ = std::make_unique<BusErrorExplanation>(data_, static_cast<size_t>(size_), name);
}

absl::StatusOr<UniqueFd> CreateSealedMemory(absl::string_view label, int64_t bytes,
                                            const MemoryLimits& limits) {
  ISOTHERM_ASSIGN_OR_RETURN(UniqueFd fd, CreateMemory(label, bytes, limits));
  // Allocates the pages; a mere ftruncate would leave the shortage to a later SIGBUS. In pieces, so
  // that a signal interrupts a piece and not all of it.
  constexpr int64_t kPiece = int64_t{256} << 20;
  for (int64_t offset = 0; offset < bytes;) {
    const int64_t length = std::min(kPiece, bytes - offset);
    const int error = ::posix_fallocate(fd.get(), offset, length);
    if (error == EINTR) continue;
    if (error != 0) return ReserveFailed(label, bytes, error);
    offset += length;
  }
  ISOTHERM_RETURN_IF_ERROR(SealSize(label, fd.get()));
  return fd;
}

absl::StatusOr<UniqueFd> CreateUnreservedMemory(absl::string_view label, int64_t bytes,
                                                const MemoryLimits& limits) {
  ISOTHERM_ASSIGN_OR_RETURN(UniqueFd fd, CreateMemory(label, bytes, limits));
  if (::ftruncate(fd.get(), bytes) != 0) return ReserveFailed(label, bytes, errno);
  ISOTHERM_RETURN_IF_ERROR(SealSize(label, fd.get()));
  return fd;
}

absl::Status CheckSealedMemory(int fd, int64_t bytes) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) {
    return absl::FailedPreconditionError(absl::StrCat("fstat: ", std::strerror(errno)));
  }
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (!S_ISREG(info.st_mode) || seals < 0) {
    return absl::FailedPreconditionError("the descriptor is no shared memory that can be sealed");
  }
  if ((seals & kSizeSeals) != kSizeSeals) {
    return absl::FailedPreconditionError(absl::StrCat("shared memory has seals ", seals,
                                                      ", want its size sealed (", kSizeSeals,
                                                      "): its owner could shrink it under us"));
  }
  if (bytes <= 0 || info.st_size != bytes) {
    return absl::FailedPreconditionError(
        absl::StrCat("shared memory has ", info.st_size, " bytes, the handshake said ", bytes));
  }
  return absl::OkStatus();
}

absl::StatusOr<Mapping> MapShared(int fd, int64_t bytes, Access access) {
  ISOTHERM_RETURN_IF_ERROR(CheckSealedMemory(fd, bytes));
  return MapWhole(fd, bytes, access);
}

absl::StatusOr<Mapping> MapWhole(int fd, int64_t bytes, Access access) {
  // Inside a reservation that nobody may touch: running over either end faults at once. Large
  // mappings start on 2 MiB, for huge pages.
  const int64_t alignment = bytes >= kMappingAlignment ? kMappingAlignment : kPage;
  const auto reserved_bytes = static_cast<size_t>(RoundUp(bytes, kPage) + 2 * alignment);
  void* const reserved = ::mmap(nullptr, reserved_bytes, PROT_NONE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot reserve ", bytes, " bytes of addresses: ", std::strerror(errno)));
  }
  const int protection = access == Access::kReadOnly ? PROT_READ : PROT_READ | PROT_WRITE;
  const auto first =
      RoundUp(reinterpret_cast<uintptr_t>(reserved) + kPage, static_cast<uintptr_t>(alignment));
  Mapping mapping(reinterpret_cast<std::byte*>(first), bytes, reserved, reserved_bytes);
  if (::mmap(mapping.data(), static_cast<size_t>(bytes), protection, MAP_SHARED | MAP_FIXED, fd,
             0) == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot map ", bytes, " bytes: ", std::strerror(errno)));
  }
  return mapping;
}

}  // namespace isotherm::shm
