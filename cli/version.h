#pragma once

namespace isotherm::cli {

inline constexpr char kVersion[] = ISOTHERM_VERSION;

}  // namespace isotherm::cli
