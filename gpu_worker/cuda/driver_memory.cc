#include "gpu_worker/cuda/driver_memory.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <unistd.h>

#include <array>
#include <vector>

#include "gpu_worker/cuda/cuda_error.h"

namespace isotherm::gpu {
namespace {

// The few names of NVIDIA's management library (NVML) that are needed; it is loaded when it is
// there, so that nothing depends on it.
struct NvmlProcess {
  unsigned int pid;
  unsigned long long used_bytes;
  unsigned int gpu_instance, compute_instance;
};
using NvmlDevice = void*;

struct Nvml {
  int (*init)() = nullptr;
  int (*by_bus_id)(const char*, NvmlDevice*) = nullptr;
  int (*processes)(NvmlDevice, unsigned int*, NvmlProcess*) = nullptr;
  bool ready = false;

  Nvml() {
    void* const library = ::dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return;
    init = reinterpret_cast<int (*)()>(::dlsym(library, "nvmlInit_v2"));
    by_bus_id = reinterpret_cast<int (*)(const char*, NvmlDevice*)>(
        ::dlsym(library, "nvmlDeviceGetHandleByPciBusId_v2"));
    processes = reinterpret_cast<int (*)(NvmlDevice, unsigned int*, NvmlProcess*)>(
        ::dlsym(library, "nvmlDeviceGetComputeRunningProcesses_v3"));
    ready = init != nullptr && by_bus_id != nullptr && processes != nullptr && init() == 0;
  }
};

}  // namespace

std::optional<int64_t> ProcessDeviceMemory(int device) {
  static const Nvml nvml;
  if (!nvml.ready) return std::nullopt;
  std::array<char, 32> bus_id{};
  NvmlDevice handle = nullptr;
  if (cudaDeviceGetPCIBusId(bus_id.data(), static_cast<int>(bus_id.size()), device) !=
          cudaSuccess ||
      nvml.by_bus_id(bus_id.data(), &handle) != 0) {
    return std::nullopt;
  }
  unsigned int count = 64;
  std::vector<NvmlProcess> found(count);
  if (nvml.processes(handle, &count, found.data()) != 0) return std::nullopt;
  // In a container the driver's process ids are not ours; alone on the device it is us all the
  // same.
  for (unsigned int i = 0; i < count; ++i) {
    if (found[i].pid == static_cast<unsigned int>(::getpid()) || count == 1)
      return static_cast<int64_t>(found[i].used_bytes);
  }
  return std::nullopt;
}

absl::StatusOr<int64_t> UsedDeviceMemory(int device) {
  if (const std::optional<int64_t> bytes = ProcessDeviceMemory(device); bytes.has_value())
    return *bytes;
  size_t free = 0, total = 0;
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaMemGetInfo(&free, &total));
  return static_cast<int64_t>(total - free);
}

}  // namespace isotherm::gpu
