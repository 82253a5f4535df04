#pragma once

#include <chrono>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace isotherm::cli {

// Asks the standard health service at `address` about `service` ("" = the whole process):
// "SERVING", "NOT_SERVING", "UNKNOWN". Unavailable (exit code 69) when nobody answers in time.
absl::StatusOr<std::string> CheckHealth(absl::string_view address, absl::string_view service,
                                        std::chrono::milliseconds timeout);

}  // namespace isotherm::cli
