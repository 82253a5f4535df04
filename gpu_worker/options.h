#pragma once

#include <optional>

#include "absl/status/statusor.h"
#include "gpu_worker/server.h"

namespace isotherm::gpu {

// Prints --help and --version itself; `exit_code` is then set and the options are void.
// InvalidArgument says what is wrong and what would work.
absl::StatusOr<GpuWorkerOptions> ParseGpuWorkerOptions(int argc, char** argv,
                                                       std::optional<int>* exit_code);

}  // namespace isotherm::gpu
