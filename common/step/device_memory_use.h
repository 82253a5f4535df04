#pragma once

#include <cstdint>

namespace isotherm {

// Where the bytes of a device's memory are; zero where a backend has no such thing.
struct DeviceMemoryUse {
  int64_t context = 0;  // the driver's own, before anything is loaded
  int64_t dense = 0, head = 0, predictor = 0, kv = 0, workspace = 0, tables = 0, hot_pool = 0;
  int64_t process = 0;  // in all, as the driver counts this process; modules and graphs among it
  int64_t budget = 0;   // what `process` may be at most

  friend bool operator==(const DeviceMemoryUse&, const DeviceMemoryUse&) = default;
};

}  // namespace isotherm
