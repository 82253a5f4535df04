#pragma once

#include <cstdint>

namespace isotherm::gpu {

inline constexpr int32_t kPageSize = 16;  // tokens of a KV page, on every backend

}  // namespace isotherm::gpu
