#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "common/tensor/dtype.h"

namespace isotherm {

// Conversions between F32 and raw 16-bit arrays, to nearest even with NaN kept, the same bits on
// every instruction set. Sizes of in and out must agree (a broken invariant otherwise); in and out
// do not overlap.
void F32ToF16(std::span<const float> in, std::span<uint16_t> out);
void F32ToBf16(std::span<const float> in, std::span<uint16_t> out);
void F16ToF32(std::span<const uint16_t> in, std::span<float> out);
void Bf16ToF32(std::span<const uint16_t> in, std::span<float> out);

// Rounds in place to the nearest value that F16 or BF16 holds.
void RoundToF16(std::span<float> values);
void RoundToBf16(std::span<float> values);

// One stored row of out.size() elements to F32, exactly: the embedding of a token.
// InvalidArgument when the type has no kernel or out.size() is no positive multiple of its block,
// or `row_bytes`, what is readable at `row`, is less than the row takes.
absl::Status DecodeRow(DType dtype, const std::byte* row, int64_t row_bytes, std::span<float> out);

}  // namespace isotherm
