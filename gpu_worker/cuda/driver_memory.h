#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"

namespace isotherm::gpu {

// Bytes of device memory that the driver counts for this process: context, modules, graphs and all.
// Nothing where the management library is not installed or does not say.
std::optional<int64_t> ProcessDeviceMemory(int device);

// FailedPrecondition when the driver says that the device has to be reset first; see NvmlUsable.
absl::Status CheckUsable(int device);

// What the driver says this process holds; else all that is taken on the device, which is no less.
absl::StatusOr<int64_t> UsedDeviceMemory(int device);

}  // namespace isotherm::gpu
