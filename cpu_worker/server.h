#pragma once

#include "absl/status/status.h"
#include "common/process/service_process.h"
#include "cpu_worker/options.h"

namespace isotherm::cpu {

// Listens, loads the model, serves until `shutdown`, drains. Returns the failure that ended it,
// with exit code kDrainCut when the drain cut a step.
absl::Status RunServer(const CpuWorkerOptions& options, ShutdownSignal& shutdown);

}  // namespace isotherm::cpu
