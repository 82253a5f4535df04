#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "common/tensor/dtype.h"

namespace isotherm {

// A weight matrix as stored: `rows` rows of `columns` elements of `dtype`, row r at
// data + r * row_bytes. The memory is the caller's; any alignment will do.
struct MatrixView {
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t row_bytes = 0;
  const std::byte* data = nullptr;
};

// InvalidArgument when the dtype has no kernel (Q4_1), columns are not a positive multiple of its
// block, rows are negative, row_bytes is shorter than a row, or data is null with rows present.
absl::Status ValidateMatrix(const MatrixView& matrix);

// One row of `dtype` elements: InvalidArgument unless kernels compute with the type and `columns`
// is a positive multiple of its block.
absl::Status ValidateRowType(DType dtype, int64_t columns);

}  // namespace isotherm
