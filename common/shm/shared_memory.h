#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/unique_fd.h"
#include "common/shm/bus_error.h"
#include "common/shm/memory_limits.h"

namespace isotherm::shm {

enum class Access { kReadOnly, kReadWrite };

// Owns one MAP_SHARED mapping; unmaps when destroyed, so users of data() must be gone by then.
class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  std::byte* data() const { return data_; }
  int64_t size() const { return size_; }
  explicit operator bool() const { return data_ != nullptr; }

  // No write through this mapping from now on.
  absl::Status MakeReadOnly();
  // For a mapped file: an access that faults because it became shorter is told as that of `name`.
  void ExplainFaults(const std::string& name);

 private:
  friend absl::StatusOr<Mapping> MapWhole(int fd, int64_t bytes, Access access);
  Mapping(std::byte* data, int64_t size, void* reserved, size_t reserved_bytes)
      : data_(data), size_(size), reserved_(reserved), reserved_bytes_(reserved_bytes) {}
  std::byte* data_ = nullptr;
  int64_t size_ = 0;
  void* reserved_ = nullptr;  // addresses around data_ that fault
  size_t reserved_bytes_ = 0;
  std::unique_ptr<BusErrorExplanation> explanation_;
};

// A memfd of `bytes` with every page reserved and its size sealed for good (SHRINK, GROW, SEAL), so
// that no holder can make an access fault. It has no name that others could open. `label` shows up
// in /proc only. Errors are those of CheckMemoryFor, under the name `label`.
absl::StatusOr<UniqueFd> CreateSealedMemory(absl::string_view label, int64_t bytes,
                                            const MemoryLimits& limits);

// The same without its pages: whoever maps it reserves them with ReservePages (huge_pages.h) before
// anything is written.
absl::StatusOr<UniqueFd> CreateUnreservedMemory(absl::string_view label, int64_t bytes,
                                                const MemoryLimits& limits);

// What a failed reservation is: ResourceExhausted with exit code kShortage.
absl::Status ReserveFailed(absl::string_view label, int64_t bytes, int error);

// The same without its pages: whoever maps it has to reserve them, by ReservePages in
// huge_pages.h, before anything is written.
absl::StatusOr<UniqueFd> CreateUnreservedMemory(absl::string_view label, int64_t bytes,
                                                const MemoryLimits& limits);

// What a failed reservation is: ResourceExhausted with exit code kShortage.
absl::Status ReserveFailed(absl::string_view label, int64_t bytes, int error);

// FailedPrecondition unless `fd` is a memfd whose size is sealed and equals `bytes`.
absl::Status CheckSealedMemory(int fd, int64_t bytes);

// Checks, then maps all of it.
absl::StatusOr<Mapping> MapShared(int fd, int64_t bytes, Access access);

// Maps bytes 0 .. bytes of whatever `fd` is, unchecked, between addresses that fault.
absl::StatusOr<Mapping> MapWhole(int fd, int64_t bytes, Access access);

}  // namespace isotherm::shm
