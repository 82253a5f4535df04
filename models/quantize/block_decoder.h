#pragma once

#include <cstddef>

#include "common/tensor/dtype.h"

namespace isotherm {

// Decodes one block of a quantised type to Info(dtype).block_elements floats. Sources of the
// layouts: the GGUF specification and ggml's dequantize_row_* functions, which give the same bits.
void DecodeBlock(DType dtype, const std::byte* block, float* out);

// Whether the block's scale, and its minimum if it has one, are finite: all its elements then are.
bool BlockFinite(DType dtype, const std::byte* block);

}  // namespace isotherm
