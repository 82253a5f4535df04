#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"

namespace isotherm {

// Lower-case hex SHA-256 of a file's bytes. `progress` is called with bytes done and in all.
absl::StatusOr<std::string> Sha256OfFile(
    const std::string& path, const std::function<void(int64_t, int64_t)>& progress = {});

}  // namespace isotherm
