#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace isotherm {

// "0-3,8" as the kernel writes sets of CPUs and taskset takes them: {0, 1, 2, 3, 8}, ascending,
// each once. Nothing for other text, a range that falls, or a number past the kernel's 8,191.
std::optional<std::vector<int>> ParseCpuList(absl::string_view text);

// The shortest such text; cpus ascend.
std::string FormatCpuList(const std::vector<int>& cpus);

}  // namespace isotherm
