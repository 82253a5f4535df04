#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace isotherm::gpu {

// Memory that a device did not give.
struct DeviceShortage {
  absl::string_view what;    // that needs it: "the hot pool"
  int64_t needed_bytes = 0;  // beside what is taken already
  int64_t free_bytes = 0, total_bytes = 0;
  absl::string_view remedy;  // "lower --context"
};

// ResourceExhausted that names all of these, with exit code 71 (short now), or 78 when the device
// could not give it even if it were empty.
absl::Status ShortageStatus(const DeviceShortage& shortage);

}  // namespace isotherm::gpu
