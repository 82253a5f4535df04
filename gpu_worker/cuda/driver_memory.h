#pragma once

#include <cstdint>
#include <optional>

namespace isotherm::gpu {

// Bytes of device memory that the driver counts for this process: context, modules, graphs and all.
// Nothing where the management library is not installed or does not say.
std::optional<int64_t> ProcessDeviceMemory(int device);

}  // namespace isotherm::gpu
