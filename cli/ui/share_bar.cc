#include "cli/ui/share_bar.h"

#include <algorithm>
#include <cmath>

namespace isotherm::cli {

std::string ShareBar(double share, int cells) {
  const double clamped = std::isfinite(share) ? std::clamp(share, 0.0, 1.0) : 0.0;
  const auto full = static_cast<size_t>(std::lround(clamped * cells));
  std::string bar(full, '#');
  bar.append(static_cast<size_t>(cells) - full, '.');
  return bar;
}

}  // namespace isotherm::cli
