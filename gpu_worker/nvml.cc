#include "gpu_worker/nvml.h"

#include <dlfcn.h>

#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/exit_code.h"

namespace isotherm::gpu {
namespace {

// The few declarations that are needed, as in the library's header.
struct Process {
  unsigned int pid;
  unsigned long long used_bytes;
  unsigned int gpu_instance, compute_instance;
};
union Value {
  unsigned int unsigned_int;
  unsigned long long widest;
};
struct FieldValue {
  unsigned int field, scope;
  long long timestamp, latency_us;
  int type, result;
  Value value;
};
using Device = void*;

// NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, since driver 570, and its values that stop all work. Others
// ask for less, such as to start nothing new on a GPU of which a part is off.
constexpr unsigned int kRecoveryAction = 230;
constexpr unsigned int kReset = 1, kReboot = 2, kResetBus = 5;

struct Library {
  int (*init)() = nullptr;
  int (*by_bus_id)(const char*, Device*) = nullptr;
  int (*processes)(Device, unsigned int*, Process*) = nullptr;
  int (*fields)(Device, int, FieldValue*) = nullptr;
  bool ready = false;

  Library() {
    void* const library = ::dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return;
    Find(library, "nvmlInit_v2", &init);
    Find(library, "nvmlDeviceGetHandleByPciBusId_v2", &by_bus_id);
    Find(library, "nvmlDeviceGetComputeRunningProcesses_v3", &processes);
    Find(library, "nvmlDeviceGetFieldValues", &fields);
    ready = init != nullptr && by_bus_id != nullptr && init() == 0;
  }
  template <typename Function>
  static void Find(void* library, const char* name, Function* out) {
    *out = reinterpret_cast<Function>(::dlsym(library, name));
  }
};

const Library& Nvml() {
  static const Library library;
  return library;
}

std::optional<Device> Find(const char* bus_id) {
  Device device = nullptr;
  if (!Nvml().ready || Nvml().by_bus_id(bus_id, &device) != 0) return std::nullopt;
  return device;
}

}  // namespace

std::optional<int64_t> NvmlProcessMemory(const char* bus_id, pid_t pid) {
  const std::optional<Device> device = Find(bus_id);
  if (!device.has_value() || Nvml().processes == nullptr) return std::nullopt;
  unsigned int count = 64;
  std::vector<Process> found(count);
  if (Nvml().processes(*device, &count, found.data()) != 0) return std::nullopt;
  for (unsigned int i = 0; i < count && i < found.size(); ++i) {
    if (found[i].pid == static_cast<unsigned int>(pid) || count == 1)
      return static_cast<int64_t>(found[i].used_bytes);
  }
  return std::nullopt;
}

absl::Status NvmlUsable(const char* bus_id) {
  const std::optional<Device> device = Find(bus_id);
  if (!device.has_value() || Nvml().fields == nullptr) return absl::OkStatus();
  FieldValue action = {};
  action.field = kRecoveryAction;
  if (Nvml().fields(*device, 1, &action) != 0 || action.result != 0) return absl::OkStatus();
  const char* remedy = nullptr;
  if (action.value.unsigned_int == kReset || action.value.unsigned_int == kResetBus)
    remedy = "end all that uses it and reset it (nvidia-smi --gpu-reset)";
  if (action.value.unsigned_int == kReboot) remedy = "reboot the machine";
  if (remedy == nullptr) return absl::OkStatus();
  return WithExitCode(absl::FailedPreconditionError(absl::StrCat(
                          "the driver says that the GPU at ", bus_id,
                          " cannot go on after an error; ", remedy, ", or use --device cpu")),
                      ExitCode::kCannotFit);
}

}  // namespace isotherm::gpu
