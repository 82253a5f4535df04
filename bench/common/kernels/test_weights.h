#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "common/tensor/dtype.h"
#include "common/tensor/half.h"
#include "hwy/aligned_allocator.h"

namespace isotherm {

// 64-byte aligned floats, zeroed.
class AlignedFloats {
 public:
  explicit AlignedFloats(int64_t count)
      : floats_(hwy::AllocateAligned<float>(static_cast<size_t>(count))) {
    for (int64_t i = 0; i < count; ++i) floats_[i] = 0;
  }
  float* get() { return floats_.get(); }
  float& operator[](int64_t i) { return floats_[i]; }

 private:
  hwy::AlignedFreeUniquePtr<float[]> floats_;
};

// rows * columns weights of about [-1, 1], from a generator cheap enough for gigabytes.
inline std::vector<std::byte> TestWeights(DType dtype, int64_t rows, int64_t columns) {
  const int64_t bytes = rows * RowBytes(dtype, columns).value();
  std::vector<std::byte> out(bytes);
  uint32_t state = 12345;
  const auto next = [&] { return (state = state * 1664525u + 1013904223u) >> 8; };
  const auto fraction = [&] { return static_cast<float>(next() % 2001) / 1000.0f - 1.0f; };
  const DTypeInfo& info = Info(dtype);
  for (int64_t at = 0; at < bytes; at += info.block_bytes) {
    std::byte* const p = out.data() + at;
    if (dtype == DType::kF32) {
      const float value = fraction();
      std::memcpy(p, &value, 4);
      continue;
    }
    const float value = fraction() / (dtype == DType::kQ8_0 ? 127 : dtype == DType::kQ4_0 ? 8 : 1);
    const uint16_t bits = dtype == DType::kBF16 ? F32ToBf16(value) : F32ToF16(value);
    std::memcpy(p, &bits, 2);
    for (int64_t i = 2; i < info.block_bytes; ++i) {
      const auto byte = static_cast<uint8_t>(next());
      p[i] = std::byte{byte == 0x80 ? uint8_t{0} : byte};
    }
  }
  return out;
}

// Element k, read plainly; for checks.
inline double PlainElement(DType dtype, const std::byte* row, int64_t k) {
  const auto half = [](const std::byte* p) {
    uint16_t bits;
    std::memcpy(&bits, p, 2);
    return bits;
  };
  switch (dtype) {
    case DType::kF16:
      return F16ToF32(half(row + 2 * k));
    case DType::kBF16:
      return Bf16ToF32(half(row + 2 * k));
    case DType::kQ8_0: {
      const std::byte* const block = row + k / 32 * 34;
      return F16ToF32(half(block)) * static_cast<int8_t>(block[2 + k % 32]);
    }
    case DType::kQ4_0: {
      const std::byte* const block = row + k / 32 * 18;
      const int byte = static_cast<int>(block[2 + k % 16]);
      return F16ToF32(half(block)) * ((k % 32 < 16 ? byte & 15 : byte >> 4) - 8);
    }
    default:
      return NAN;
  }
}

// The dot product and the sum of its terms' magnitudes.
inline std::pair<double, double> PlainDot(DType dtype, const std::byte* row, const float* x,
                                          int64_t columns) {
  double sum = 0, magnitude = 0;
  for (int64_t k = 0; k < columns; ++k) {
    const double term = PlainElement(dtype, row, k) * x[k];
    sum += term;
    magnitude += std::abs(term);
  }
  return {sum, magnitude};
}

}  // namespace isotherm
