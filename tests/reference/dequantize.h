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
      break;
  }
  return NAN;
}

inline double Element(const MatrixView& w, int64_t row, int64_t k) {
  return Element(w.dtype, w.data + row * w.row_bytes, k);
}

}  // namespace isotherm::reference
