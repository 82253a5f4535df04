#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>

#include "absl/status/status.h"

namespace isotherm::gpu {

// NVIDIA's management library, loaded when it is there, so that nothing depends on it. Devices are
// named by their PCI bus id, as the CUDA runtime tells it. Thread-safe.

// Bytes of the device's memory that the driver counts for the process; for the only process on it
// whatever its id, as in a container the driver's ids are not ours. Nothing where the library is
// not installed or does not say.
std::optional<int64_t> NvmlProcessMemory(const char* bus_id, pid_t pid);

// FailedPrecondition with exit code 78, for a restart is in vain, when the driver says that nothing
// will work on the device until it is reset or the machine rebooted. OK where it does not say.
absl::Status NvmlUsable(const char* bus_id);

}  // namespace isotherm::gpu
