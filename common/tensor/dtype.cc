#include "common/tensor/dtype.h"

#include <array>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/checked_math.h"

namespace isotherm {
namespace {

constexpr std::array<DTypeInfo, 11> kTypes = {{
    {DType::kF32, "F32", 1, 4},
    {DType::kF16, "F16", 1, 2},
    {DType::kBF16, "BF16", 1, 2},
    {DType::kQ8_0, "Q8_0", 32, 34},
    {DType::kQ4_0, "Q4_0", 32, 18},
    {DType::kQ4_1, "Q4_1", 32, 20},
    {DType::kQ5_0, "Q5_0", 32, 22},
    {DType::kQ5_1, "Q5_1", 32, 24},
    {DType::kQ4_K, "Q4_K", 256, 144},
    {DType::kQ5_K, "Q5_K", 256, 176},
    {DType::kQ6_K, "Q6_K", 256, 210},
}};
constexpr absl::string_view kSupported =
    "supported: F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q5_K Q6_K";

}  // namespace

const DTypeInfo& Info(DType dtype) {
  for (const DTypeInfo& info : kTypes) {
    if (info.dtype == dtype) return info;
  }
  ISOTHERM_CHECK(!"unknown DType");
  __builtin_unreachable();
}

absl::string_view Name(DType dtype) { return Info(dtype).name; }

absl::StatusOr<DType> DTypeFromGgml(uint32_t ggml_type) {
  for (const DTypeInfo& info : kTypes) {
    if (static_cast<uint32_t>(info.dtype) == ggml_type) return info.dtype;
  }
  return absl::UnimplementedError(
      absl::StrCat("tensor type ", ggml_type, " is not supported; ", kSupported));
}

absl::StatusOr<DType> DTypeFromName(absl::string_view name) {
  for (const DTypeInfo& info : kTypes) {
    if (absl::EqualsIgnoreCase(info.name, name)) return info.dtype;
  }
  return absl::InvalidArgumentError(absl::StrCat("unknown weight type '", name, "'; ", kSupported));
}

absl::StatusOr<int64_t> RowBytes(DType dtype, int64_t columns) {
  const DTypeInfo& info = Info(dtype);
  if (columns <= 0 || columns % info.block_elements != 0) {
    return absl::InvalidArgumentError(absl::StrCat("a row of ", columns,
                                                   " elements is not a positive multiple of ",
                                                   info.name, "'s block of ", info.block_elements));
  }
  return CheckedMul<int64_t>(columns / info.block_elements, info.block_bytes);
}

}  // namespace isotherm
