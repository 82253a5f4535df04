#pragma once

#include <bit>
#include <cstdint>

namespace isotherm {

// IEEE binary16 and bfloat16 as raw bits; conversions round to nearest even, as every backend must.

// In integers, not _Float16: compilers differ in where they support it, and call a function for it.
inline float F16ToF32(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t size = bits & 0x7fffu;
  if (size >= 0x7c00u) {  // infinity, or NaN, which becomes quiet
    return std::bit_cast<float>(sign | 0x7f800000u | (size << 13) |
                                (size > 0x7c00u ? 0x400000u : 0u));
  }
  if (size < 0x400u) {  // zero and subnormals: multiples of 2^-24
    const float value = static_cast<float>(size) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(value));
  }
  constexpr uint32_t kRebias = (127u - 15u) << 23;
  return std::bit_cast<float>(sign | ((size << 13) + kRebias));
}

inline uint16_t F32ToF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t size = bits & 0x7fffffffu;
  uint32_t half = 0;
  if (size > 0x7f800000u) {  // NaN keeps what fits of its payload
    half = 0x7e00u | ((size >> 13) & 0x3ffu);
  } else if (size >= 0x477ff000u) {  // 65520 and more round to infinity
    half = 0x7c00u;
  } else if (size < 0x38800000u) {
    // Below 2^-14: the sum's last bit is worth 2^-24, so the addition itself rounds.
    half = std::bit_cast<uint32_t>(std::bit_cast<float>(size) + 0.5f) - 0x3f000000u;
  } else {
    constexpr uint32_t kRebias = (127u - 15u) << 23;
    half = (size - kRebias + 0xfffu + ((size >> 13) & 1u)) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
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
