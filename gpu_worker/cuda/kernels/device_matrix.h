#pragma once

#include <cstdint>

#include "common/tensor/dtype.h"

namespace isotherm::gpu {

// A weight matrix in device memory; a row is one output. Rows are padded with zeros to
// `padded_columns`, a multiple of 32, so that every load is of 16 aligned bytes; behind the last
// row zeros follow up to a multiple of 8 rows. Quantised types are kept in two planes: `data` has
// the integers (Q8_0: a byte each; Q4_0: 16 bytes for 32 columns, the low halves first), `scales`
// one F16 for each 32 columns.
struct DeviceMatrix {
  DType dtype = DType::kF16;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t padded_columns = 0;
  const void* data = nullptr;
  const uint16_t* scales = nullptr;  // [rows, padded_columns / 32]

  int64_t row_bytes() const {
    switch (dtype) {
      case DType::kF32:
        return padded_columns * 4;
      case DType::kF16:
      case DType::kBF16:
        return padded_columns * 2;
      case DType::kQ8_0:
        return padded_columns;
      default:
        return padded_columns / 2;
    }
  }
};

// Neurons as bundles of [gate | up | down] or [up | down] rows in the file's own encoding.
struct DeviceBundles {
  DType dtype = DType::kF16;
  int rows = 3;
  int64_t model_dim = 0;
  int64_t row_bytes = 0;
  int64_t bundle_bytes = 0;
};

}  // namespace isotherm::gpu
