#include "bench/probe/cuda/nvml.h"

#include <dlfcn.h>
#include <unistd.h>

#include <type_traits>

namespace isotherm::probe {
namespace {

// The few declarations used, as in nvml.h of driver 510 and later.
struct ProcessInfo {
  unsigned pid;
  unsigned long long used_bytes;
  unsigned gpu_instance, compute_instance;
};
struct MemoryInfo {
  unsigned long long total, free, used;
};
using Device = void*;

struct Nvml {
  int (*init)() = nullptr;
  int (*device_by_index)(unsigned, Device*) = nullptr;
  int (*processes)(Device, unsigned*, ProcessInfo*) = nullptr;
  int (*memory)(Device, MemoryInfo*) = nullptr;
  Device device = nullptr;
};

Nvml Open() {
  Nvml nvml;
  void* const library = ::dlopen("libnvidia-ml.so.1", RTLD_NOW);
  if (library == nullptr) return nvml;
  const auto find = [&](auto& function, const char* name) {
    function =
        reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(library, name));
    return function != nullptr;
  };
  const bool found = find(nvml.init, "nvmlInit_v2") &&
                     find(nvml.device_by_index, "nvmlDeviceGetHandleByIndex_v2") &&
                     find(nvml.processes, "nvmlDeviceGetComputeRunningProcesses_v3") &&
                     find(nvml.memory, "nvmlDeviceGetMemoryInfo");
  if (!found || nvml.init() != 0 || nvml.device_by_index(0, &nvml.device) != 0) {
    nvml.device = nullptr;
  }
  return nvml;
}

}  // namespace

DriverMemory ReadDriverMemory() {
  static const Nvml nvml = Open();
  DriverMemory result;
  if (nvml.device == nullptr) return result;
  MemoryInfo memory{};
  if (nvml.memory(nvml.device, &memory) == 0) result.device = static_cast<int64_t>(memory.used);
  ProcessInfo processes[64];
  unsigned count = 64;
  if (nvml.processes(nvml.device, &count, processes) != 0) return result;
  for (unsigned i = 0; i < count; ++i) {
    // In a PID namespace the driver may name us differently; alone on the device it must be us.
    const bool ours = processes[i].pid == static_cast<unsigned>(::getpid()) || count == 1;
    if (ours && processes[i].used_bytes != ~0ull) {
      result.process = static_cast<int64_t>(processes[i].used_bytes);
    }
  }
  return result;
}

}  // namespace isotherm::probe
