#pragma once

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace isotherm {

// Text of a file for an error, a log line or a terminal: control and invalid bytes are escaped, and
// more than max_bytes is cut with its length told.
std::string Printable(absl::string_view text, size_t max_bytes = 80);

}  // namespace isotherm
