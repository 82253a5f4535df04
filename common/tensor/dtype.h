#pragma once

#include <cstdint>
#include "absl/strings/string_view.h"

#include "absl/status/statusor.h"

namespace isotherm {

// Element types of weights. The values are ggml's type ids, so a file's id casts after a check with
// DTypeFromGgml(). Kernels compute with F32, F16, BF16, Q8_0 and Q4_0; the others are read from
// files and repacked.
enum class DType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
};

// Elements and bytes of one block; 1 and the scalar's size for plain types.
struct DTypeInfo {
  DType dtype;
  absl::string_view name;  // "Q8_0"
  int64_t block_elements;
  int64_t block_bytes;
};

const DTypeInfo& Info(DType dtype);
absl::string_view Name(DType dtype);

// Unimplemented for a ggml id that Isotherm does not read; the text names the supported
// ones.
absl::StatusOr<DType> DTypeFromGgml(uint32_t ggml_type);
// Case-insensitive "q8_0".
absl::StatusOr<DType> DTypeFromName(absl::string_view name);

// Bytes of a row of `columns` elements. InvalidArgument unless columns is a positive multiple of
// the block; OutOfRange when it does not fit 63 bits.
absl::StatusOr<int64_t> RowBytes(DType dtype, int64_t columns);

}  // namespace isotherm
