#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "gpu_worker/cuda/cuda_error.h"

namespace isotherm::gpu {

// Owned device memory, or owned page-locked host memory that the device reads and writes at the
// same address. Freed with the owner; freeing waits for the device, so never during a step.
template <bool kPinned>
class CudaBytes {
 public:
  CudaBytes() = default;
  CudaBytes(CudaBytes&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  CudaBytes& operator=(CudaBytes&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~CudaBytes() {
    if (data_ == nullptr) return;
    if constexpr (kPinned) {
      cudaFreeHost(data_);
    } else {
      cudaFree(data_);
    }
  }

  // Zeroed. No bytes: an empty one. ResourceExhausted, naming `what`, the bytes needed and free,
  // when they are not to be had.
  static absl::StatusOr<CudaBytes> Make(int64_t bytes, absl::string_view what = "a buffer") {
    CudaBytes out;
    if (bytes <= 0) return out;
    const auto size = static_cast<size_t>(bytes);
    cudaError_t error = cudaErrorMemoryAllocation;
    if (!AllocationFails()) {
      error = kPinned ? cudaHostAlloc(&out.data_, size, cudaHostAllocMapped)
                      : cudaMalloc(&out.data_, size);
    }
    if (error == cudaErrorMemoryAllocation)
      return kPinned ? PinnedShort(what, bytes) : DeviceShort(what, bytes);
    ISOTHERM_CUDA_RETURN_IF_ERROR(error);
    if constexpr (kPinned) {
      __builtin_memset(out.data_, 0, size);
    } else {
      ISOTHERM_CUDA_RETURN_IF_ERROR(cudaMemset(out.data_, 0, size));
    }
    out.bytes_ = bytes;
    return out;
  }

  template <typename T = std::byte>
  T* as() const {
    return static_cast<T*>(data_);
  }
  int64_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

using DeviceBytes = CudaBytes<false>;
using PinnedBytes = CudaBytes<true>;

}  // namespace isotherm::gpu
