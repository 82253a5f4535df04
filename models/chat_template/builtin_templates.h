#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace isotherm::chat {

// Source of a template for models whose file has none: chatml, llama2, alpaca, plain. NotFound
// lists the names.
absl::StatusOr<absl::string_view> BuiltInSource(absl::string_view name);

}  // namespace isotherm::chat
