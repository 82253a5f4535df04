#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "common/tensor/dtype.h"

namespace isotherm::bench {

// Weights are small integers, "levels" of -8 .. 7, times a power of two, so that a row is the same
// numbers in every weight type. All kernels give the same bytes on every instruction set.

// 16 equally likely levels. Sums to zero.
using LevelTable = std::array<int8_t, 16>;
// A normal distribution in 16 steps; variance 13.5.
inline constexpr LevelTable kNormalLevels = {-7, -5, -4, -3, -2, -2, -1, 0, 0, 1, 2, 2, 3, 4, 5, 7};
// Small enough that the sum of three is a level; variance 1.5.
inline constexpr LevelTable kBasisLevels = {-2, -2, -1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2};

// Level buffers hold a multiple of this many.
inline constexpr int64_t kLevelGroup = 128;

// levels[i] for i < `count`, a multiple of kLevelGroup: drawn from the table with xorshift128+
// (Vigna 2017) in eight lanes that `seed` starts.
void DrawLevels(uint64_t seed, const LevelTable& table, int64_t count, int8_t* levels);

// out[i] = sum over three rows of sign * row[i], sign +1 or -1. Returns the sum of out[i]^2.
// `count` is a multiple of 64.
struct MixedRows {
  std::array<const int8_t*, 3> rows;
  std::array<int, 3> signs;
};
int64_t MixRows(const MixedRows& mix, int64_t count, int8_t* out);

// Writes levels times 2^exponent as a row of `dtype`: F16, BF16, Q8_0 or Q4_0. `count` is a
// multiple of 32 for block types.
void EncodeLevels(DType dtype, const int8_t* levels, int64_t count, int exponent, std::byte* out);

}  // namespace isotherm::bench
