#include "common/kernels/matrix_view.h"

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace isotherm {

absl::Status ValidateRowType(DType dtype, int64_t columns) {
  switch (dtype) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
    case DType::kQ8_0:
    case DType::kQ4_0:
      return RowBytes(dtype, columns).status();
    default:
      break;
  }
  return absl::InvalidArgumentError(absl::StrCat("no kernel for weights of type ", Name(dtype),
                                                 "; repack them to Q4_0 or Q8_0 at load"));
}

absl::Status ValidateMatrix(const MatrixView& matrix) {
  ISOTHERM_RETURN_IF_ERROR(ValidateRowType(matrix.dtype, matrix.columns));
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t row_bytes, RowBytes(matrix.dtype, matrix.columns));
  if (matrix.rows < 0) {
    return absl::InvalidArgumentError(absl::StrCat("a matrix of ", matrix.rows, " rows"));
  }
  if (matrix.row_bytes < row_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("row stride is ", matrix.row_bytes,
                                                   " bytes, a row of ", matrix.columns, " ",
                                                   Name(matrix.dtype), " takes ", row_bytes));
  }
  if (matrix.data == nullptr && matrix.rows > 0) {
    return absl::InvalidArgumentError("matrix has rows but no data");
  }
  return absl::OkStatus();
}

}  // namespace isotherm
