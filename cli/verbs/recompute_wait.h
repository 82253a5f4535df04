#pragma once

#include <functional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/client/placement_client.h"
#include "cli/verbs/verb.h"

namespace isotherm::cli {

// Asks `ask`, the same question each time, until the recomputation has ended (or once, without
// `wait`), and prints what came of it. One that failed ends with exit code 69.
absl::Status WaitForRecomputation(const std::function<absl::StatusOr<RecomputationInfo>()>& ask,
                                  bool wait, VerbContext& context);

}  // namespace isotherm::cli
