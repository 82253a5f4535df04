#include "gpu_worker/cuda/cuda_error.h"

#include "absl/strings/str_cat.h"
#include "common/base/exit_code.h"
#include "common/base/units.h"
#include "gpu_worker/device_shortage.h"

namespace isotherm::gpu {

bool IsSticky(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorAssert:
      return true;
    default:
      return false;
  }
}

absl::Status DeviceShort(absl::string_view what, int64_t needed_bytes, absl::string_view remedy,
                         int64_t got) {
  cudaGetLastError();
  size_t free = 0, total = 0;
  if (const cudaError_t error = cudaMemGetInfo(&free, &total); error != cudaSuccess)
    return CudaStatus(error, what);
  return ShortageStatus({.what = what,
                         .needed_bytes = needed_bytes,
                         .free_bytes = static_cast<int64_t>(free) + got,
                         .total_bytes = static_cast<int64_t>(total),
                         .remedy = remedy});
}

absl::Status PinnedShort(absl::string_view what, int64_t needed_bytes) {
  cudaGetLastError();
  return WithExitCode(
      absl::ResourceExhaustedError(absl::StrCat("page-locked memory is short: ", what, " needs ",
                                                FormatBytes(needed_bytes),
                                                "; end what else holds memory of this machine")),
      ExitCode::kShortage);
}

absl::Status CudaStatus(cudaError_t error, absl::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string text =
      absl::StrCat(what, ": ", cudaGetErrorName(error), ", ", cudaGetErrorString(error));
  if (error == cudaErrorMemoryAllocation) {
    return WithExitCode(absl::ResourceExhaustedError(absl::StrCat(
                            "the GPU's memory is short: ", text, "; ", kLessOfTheDevice)),
                        ExitCode::kShortage);
  }
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) {
    return WithExitCode(absl::FailedPreconditionError(absl::StrCat(
                            "no usable CUDA device: ", text, "; use --device cpu on this machine")),
                        ExitCode::kShortage);
  }
  return absl::InternalError(text);
}

}  // namespace isotherm::gpu
