#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "common/tensor/dtype.h"
#include "models/gguf/gguf_file.h"

namespace isotherm {

// Part of a tensor, converted to `dtype`: rows or columns first .. first + count, each written
// `stride` bytes after the one before, RowBytes(dtype, their length) bytes long.
struct TensorRange {
  int64_t first = 0;
  int64_t count = 0;
  DType dtype = DType::kF32;
  std::byte* out = nullptr;
  int64_t stride = 0;
  // Of rows only this part is taken: whole blocks. num_columns 0: all.
  int64_t first_column = 0;
  int64_t num_columns = 0;
};

// Both read a bounded number of bytes at a time. The tensor's type must be one of DType. DataLoss
// (exit code 65) when a scale or value is infinite or no number, stored or after the conversion,
// and when the file has become shorter. Any thread.
absl::Status ReadTensorRows(const GgufFile& file, const GgufTensor& tensor,
                            const TensorRange& range);
// Column c of the tensor becomes a row: a transposition. A quantised tensor is requantised.
absl::Status ReadTensorColumns(const GgufFile& file, const GgufTensor& tensor,
                               const TensorRange& range);

}  // namespace isotherm
