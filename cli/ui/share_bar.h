#pragma once

#include <string>

namespace isotherm::cli {

// `share` (0 to 1, else clamped) as a bar of `cells` characters: "#####......".
std::string ShareBar(double share, int cells);

}  // namespace isotherm::cli
