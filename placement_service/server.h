#pragma once

#include "absl/status/status.h"
#include "common/process/service_process.h"
#include "placement_service/options.h"

namespace isotherm {

// Opens the plan store, listens, and publishes plans until a signal. Announces "listening" before
// it asks the workers anything and "ready" after the first round: the plan is live then, or what it
// waits for is logged and told to watchers. The status carries the exit code.
absl::Status RunPlacementServer(const PlacementOptions& options, ShutdownSignal& shutdown);

}  // namespace isotherm
