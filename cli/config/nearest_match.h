#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace isotherm::cli {

// The candidate with the fewest edits (insert, delete, replace, swap of neighbours) to `text`, ""
// when even that one differs in more than a third of its letters (at least two).
std::string NearestMatch(absl::string_view text, const std::vector<std::string>& candidates);

}  // namespace isotherm::cli
