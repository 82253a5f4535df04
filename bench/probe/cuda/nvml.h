#pragma once

#include <cstdint>

namespace isotherm::probe {

// Device memory as the driver accounts for it, in bytes; -1: it does not say.
struct DriverMemory {
  int64_t process = -1;  // of this process
  int64_t device = -1;   // in use on device 0, by all
};

// Through NVML, which is opened at the first call: there is no stub to link against.
DriverMemory ReadDriverMemory();

}  // namespace isotherm::probe
