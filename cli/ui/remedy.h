#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace isotherm::cli {

// Attaches what the user can do about an error: a command, or a short sentence. The first one
// attached, nearest to the cause, is kept.
absl::Status WithTry(absl::Status status, absl::string_view remedy);
// "" when none was attached.
std::string TryOf(const absl::Status& status);

}  // namespace isotherm::cli
