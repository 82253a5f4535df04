#include "gpu_worker/cuda/driver_memory.h"

#include <cuda_runtime_api.h>
#include <unistd.h>

#include <array>

#include "gpu_worker/cuda/cuda_error.h"
#include "gpu_worker/nvml.h"

namespace isotherm::gpu {
namespace {

// Of the device, for the management library; nothing when the device has none.
std::optional<std::array<char, 32>> BusId(int device) {
  std::array<char, 32> id{};
  if (cudaDeviceGetPCIBusId(id.data(), static_cast<int>(id.size()), device) == cudaSuccess)
    return id;
  cudaGetLastError();
  return std::nullopt;
}

}  // namespace

std::optional<int64_t> ProcessDeviceMemory(int device) {
  const auto id = BusId(device);
  return id.has_value() ? NvmlProcessMemory(id->data(), ::getpid()) : std::nullopt;
}

absl::Status CheckUsable(int device) {
  const auto id = BusId(device);
  return id.has_value() ? NvmlUsable(id->data()) : absl::OkStatus();
}

absl::StatusOr<int64_t> UsedDeviceMemory(int device) {
  if (const std::optional<int64_t> bytes = ProcessDeviceMemory(device); bytes.has_value())
    return *bytes;
  size_t free = 0, total = 0;
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaMemGetInfo(&free, &total));
  return static_cast<int64_t>(total - free);
}

}  // namespace isotherm::gpu
