#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace isotherm::gpu {

// OK, ResourceExhausted when the device's memory is short, Internal else; the text names `what` and
// the driver's reason. After one that leaves the context unusable, which IsSticky() tells, the
// process has to end: nothing on the device works any more.
absl::Status CudaStatus(cudaError_t error, absl::string_view what);

// What users can do about a device that is full.
inline constexpr char kLessOfTheDevice[] =
    "lower --context, --parallel or --max-rows, or end what else holds memory of this GPU";

// ResourceExhausted for what the current device did not give: bytes needed and free, and what to
// do. `got` of the bytes needed were had, and are taken as free. Forgets the runtime's error, which
// is not a sticky one.
absl::Status DeviceShort(absl::string_view what, int64_t needed_bytes,
                         absl::string_view remedy = kLessOfTheDevice, int64_t got = 0);
// The same for page-locked host memory.
absl::Status PinnedShort(absl::string_view what, int64_t needed_bytes);

// For tests: the n-th allocation from now on, counted from 0, fails as on a full device, and none
// after it; below 0: none does. Nothing but a test writes it.
inline std::atomic<int64_t> fail_nth_allocation{-1};
// Asked once by each allocation.
inline bool AllocationFails() {
  return fail_nth_allocation.load() >= 0 && fail_nth_allocation.fetch_sub(1) == 0;
}

// True for errors after which every further call fails.
bool IsSticky(cudaError_t error);

}  // namespace isotherm::gpu

#define ISOTHERM_CUDA_RETURN_IF_ERROR(expression)                                                 \
  do {                                                                                            \
    if (const cudaError_t isotherm_cuda_error = (expression); isotherm_cuda_error != cudaSuccess) \
      return ::isotherm::gpu::CudaStatus(isotherm_cuda_error, #expression);                       \
  } while (false)
