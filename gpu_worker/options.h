#pragma once

#include <optional>

#include "absl/status/statusor.h"
#include "gpu_worker/server.h"

namespace isotherm::gpu {

// Sets `exit_code` when the command line was answered on the terminal: --help, --version, or a flag
// that does not exist. InvalidArgument (exit code 64) says what else is wrong.
absl::StatusOr<GpuWorkerOptions> ParseGpuWorkerOptions(int argc, char** argv,
                                                       std::optional<int>* exit_code);

}  // namespace isotherm::gpu
