#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace isotherm::gpu {

// OK, ResourceExhausted when the device's memory is short, Internal else; the text names `what` and
// the driver's reason. After one that leaves the context unusable, which IsSticky() tells, the
// process has to end: nothing on the device works any more.
absl::Status CudaStatus(cudaError_t error, absl::string_view what);

// ResourceExhausted for what the current device did not give: bytes needed and free, and what to
// do. Forgets the runtime's error, which is not a sticky one.
absl::Status DeviceShort(absl::string_view what, int64_t needed_bytes, absl::string_view remedy);

// True for errors after which every further call fails.
bool IsSticky(cudaError_t error);

}  // namespace isotherm::gpu

#define ISOTHERM_CUDA_RETURN_IF_ERROR(expression)                                                 \
  do {                                                                                            \
    if (const cudaError_t isotherm_cuda_error = (expression); isotherm_cuda_error != cudaSuccess) \
      return ::isotherm::gpu::CudaStatus(isotherm_cuda_error, #expression);                       \
  } while (false)
