#pragma once

#include <bit>
#include <cstdint>

namespace isotherm {

// IEEE binary16 and bfloat16 as raw bits; conversions round to nearest even, as every backend must.

inline float F16ToF32(uint16_t bits) { return static_cast<float>(std::bit_cast<_Float16>(bits)); }

inline uint16_t F32ToF16(float value) {
  return std::bit_cast<uint16_t>(static_cast<_Float16>(value));
}

inline float Bf16ToF32(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

inline uint16_t F32ToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u)
    return static_cast<uint16_t>((bits >> 16) | 0x40u);  // NaN
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace isotherm
