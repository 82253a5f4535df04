#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "common/tensor/dtype.h"

namespace isotherm {

// One row of weights between its stored form and F32. `row` holds RowBytes(dtype, n) bytes for n
// elements. InvalidArgument when n is not a multiple of the type's block. Any thread.
//
// Encoding of a block of 32, as the shipped model's golden outputs were made (an all-zero block has
// d = 0):
//   Q8_0  d = max|x| / 127, q = x / d rounded half away from zero
//   Q4_0  d = x of largest magnitude, signed, / -8; n = min(15, trunc(x / d + 8.5))
//   Q4_1  d = (max - min) / 15, m = min; n = min(15, trunc((x - m) / d + 0.5))
// d below the least normal F32 counts as 0: it is stored as 0 anyhow, and 1 / d would overflow.
// 1 / d is taken in F32 from the unrounded d; d is stored as F16. Plain types round to nearest
// even. Values given to a quantising EncodeRow must be finite; a block beyond what an F16 scale
// holds comes out infinite, which AllFinite() finds.
//
// Every DType is decoded; EncodeRow takes those that CanEncode() names.
bool CanEncode(DType dtype);
absl::Status DecodeRow(DType dtype, const std::byte* row, std::span<float> out);
absl::Status EncodeRow(DType dtype, std::span<const float> in, std::byte* row);

// Whether no value (plain types) or no scale and minimum (quantised types) of a stored row is
// infinite or NaN. `columns` is a multiple of the type's block.
bool AllFinite(DType dtype, const std::byte* row, int64_t columns);

}  // namespace isotherm
