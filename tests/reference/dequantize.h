#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "common/kernels/matrix_view.h"

// Plain readings of the formats, element by element, in double.
namespace isotherm::reference {

inline double HalfToDouble(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  const double sign = (bits >> 15) != 0 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa != 0 ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

template <typename T>
T ReadAt(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

// Types that are read from files only. Each formula gives element i of a block from its bytes.
inline double RareElement(DType dtype, const std::byte* row, int64_t k) {
  const DTypeInfo& info = Info(dtype);
  const std::byte* const block = row + k / info.block_elements * info.block_bytes;
  const int i = static_cast<int>(k % info.block_elements);
  const auto byte = [block](int at) { return static_cast<int>(ReadAt<uint8_t>(block + at)); };
  const auto half = [block](int at) { return HalfToDouble(ReadAt<uint16_t>(block + at)); };
  const auto nibble = [&](int q) { return i < 16 ? byte(q + i) & 15 : byte(q + i - 16) >> 4; };
  const auto fifth = [&](int h) {
    return 16 * static_cast<int>(ReadAt<uint32_t>(block + h) >> i & 1);
  };
  if (dtype == DType::kQ4_1) return half(0) * nibble(4) + half(2);
  if (dtype == DType::kQ5_0) return half(0) * (nibble(6) + fifth(2) - 16);
  if (dtype == DType::kQ5_1) return half(0) * (nibble(8) + fifth(4)) + half(2);
  if (dtype == DType::kQ6_K) {
    const int a = i / 128, g = i % 128 / 32, l = i % 32;
    const int low = (byte(64 * a + l + 32 * (g & 1)) >> 4 * (g >> 1)) & 15;
    const int high = (byte(128 + 32 * a + l) >> 2 * g) & 3;
    return half(208) * ReadAt<int8_t>(block + 192 + i / 16) * (low + 16 * high - 32);
  }
  // Q4_K, Q5_K
  const int j = i / 32, q = dtype == DType::kQ5_K ? 48 : 16;
  const auto sc = [&](int at) { return byte(4 + at); };
  const int s = j < 4 ? sc(j) & 63 : (sc(j + 4) & 15) + 16 * (sc(j - 4) >> 6);
  const int m = j < 4 ? sc(j + 4) & 63 : (sc(j + 4) >> 4) + 16 * (sc(j) >> 6);
  int n = (byte(q + 32 * (j / 2) + i % 32) >> 4 * (j % 2)) & 15;
  if (dtype == DType::kQ5_K) n += 16 * ((byte(16 + i % 32) >> j) & 1);
  return half(0) * s * n - half(2) * m;
}

// Element k of a row of `dtype`.
inline double Element(DType dtype, const std::byte* row, int64_t k) {
  switch (dtype) {
    case DType::kF32:
      return ReadAt<float>(row + 4 * k);
    case DType::kF16:
      return HalfToDouble(ReadAt<uint16_t>(row + 2 * k));
    case DType::kBF16: {
      const uint32_t bits = uint32_t{ReadAt<uint16_t>(row + 2 * k)} << 16;
      float value;
      std::memcpy(&value, &bits, 4);
      return value;
    }
    case DType::kQ8_0: {
      const std::byte* block = row + k / 32 * 34;
      return HalfToDouble(ReadAt<uint16_t>(block)) * ReadAt<int8_t>(block + 2 + k % 32);
    }
    case DType::kQ4_0: {
      const std::byte* block = row + k / 32 * 18;
      const int i = static_cast<int>(k % 32);
      const int byte = ReadAt<uint8_t>(block + 2 + i % 16);
      return HalfToDouble(ReadAt<uint16_t>(block)) * ((i < 16 ? byte & 15 : byte >> 4) - 8);
    }
    case DType::kQ4_1:
    case DType::kQ5_0:
    case DType::kQ5_1:
    case DType::kQ4_K:
    case DType::kQ5_K:
    case DType::kQ6_K:
      return RareElement(dtype, row, k);
  }
  return NAN;
}

inline double Element(const MatrixView& w, int64_t row, int64_t k) {
  return Element(w.dtype, w.data + row * w.row_bytes, k);
}

}  // namespace isotherm::reference
