#include "models/tensor_reader.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "models/quantize/block_codec.h"

namespace isotherm {
namespace {

constexpr int64_t kReadBytes = int64_t{4} << 20;  // one call for many rows, memory bounded

absl::Status NotFinite(const GgufFile& file, const GgufTensor& tensor, int64_t row,
                       absl::string_view when) {
  return WithExitCode(
      absl::DataLossError(absl::StrCat(file.path(), ": tensor ", tensor.name, " row ", row,
                                       " holds a value that is infinite or no number", when)),
      ExitCode::kBadData);
}

absl::Status NotFiniteStored(const GgufFile& file, const GgufTensor& tensor, int64_t row) {
  return NotFinite(file, tensor, row, ": the file is damaged; get it again");
}

absl::Status NotFiniteConverted(const GgufFile& file, const GgufTensor& tensor, int64_t row,
                                DType dtype) {
  return NotFinite(file, tensor, row,
                   absl::StrCat(" after conversion to ", Name(dtype),
                                "; store the model in that type to see where it comes from"));
}

}  // namespace

absl::Status ReadTensorRows(const GgufFile& file, const GgufTensor& tensor,
                            const TensorRange& range) {
  ISOTHERM_ASSIGN_OR_RETURN(const DType stored, DTypeFromGgml(tensor.ggml_type));
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t stored_bytes, RowBytes(stored, tensor.columns()));
  const int64_t columns = range.num_columns > 0 ? range.num_columns : tensor.columns();
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t taken_bytes, RowBytes(stored, columns));
  const int64_t skipped_bytes =
      range.first_column / Info(stored).block_elements * Info(stored).block_bytes;
  if (range.first_column < 0 || skipped_bytes > stored_bytes - taken_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("columns ", range.first_column, " + ", columns,
                                                   " of tensor ", tensor.name, ", which has ",
                                                   tensor.columns()));
  }
  const int64_t rows_per_read = std::max<int64_t>(1, kReadBytes / stored_bytes);
  const bool convert = stored != range.dtype;
  const bool in_place = !convert && range.stride == stored_bytes && taken_bytes == stored_bytes;
  std::vector<std::byte> buffer(
      in_place ? 0 : static_cast<size_t>(std::min(rows_per_read, range.count) * stored_bytes));
  std::vector<float> decoded(convert ? static_cast<size_t>(columns) : 0);
  for (int64_t done = 0; done < range.count; done += rows_per_read) {
    const int64_t rows = std::min(rows_per_read, range.count - done);
    std::byte* from = in_place ? range.out + done * stored_bytes : buffer.data();
    ISOTHERM_RETURN_IF_ERROR(file.Read(tensor, (range.first + done) * stored_bytes,
                                       {from, static_cast<size_t>(rows * stored_bytes)}));
    for (int64_t r = 0; r < rows; ++r, from += stored_bytes) {
      const int64_t row = range.first + done + r;
      std::byte* to = range.out + (done + r) * range.stride;
      const std::byte* const taken = from + skipped_bytes;
      if (!AllFinite(stored, taken, columns)) return NotFiniteStored(file, tensor, row);
      if (in_place) continue;
      if (!convert) {
        std::memcpy(to, taken, static_cast<size_t>(taken_bytes));
        continue;
      }
      ISOTHERM_RETURN_IF_ERROR(DecodeRow(stored, taken, decoded));
      ISOTHERM_RETURN_IF_ERROR(EncodeRow(range.dtype, decoded, to));
      if (!AllFinite(range.dtype, to, columns)) {
        return NotFiniteConverted(file, tensor, row, range.dtype);
      }
    }
  }
  return absl::OkStatus();
}

namespace {

// Rows decoded together, so that each write of the transposition is a cache line.
constexpr int64_t kGroup = 16;

// Reads columns first .. first + count of every row as [count, rows]: T = float decodes them,
// uint16_t keeps a 16-bit type's bits.
template <typename T>
absl::Status TransposeTile(const GgufFile& file, const GgufTensor& tensor, DType stored,
                           int64_t first, int64_t count, std::vector<T>* out) {
  const DTypeInfo& info = Info(stored);
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t row_bytes, RowBytes(stored, tensor.columns()));
  const int64_t first_block = first / info.block_elements;
  const int64_t end_block = (first + count - 1) / info.block_elements + 1;
  const int64_t width = (end_block - first_block) * info.block_elements;
  const int64_t skip = first - first_block * info.block_elements;
  const int64_t piece_bytes = (end_block - first_block) * info.block_bytes;
  const int64_t num_rows = tensor.rows();
  std::vector<std::byte> buffer(static_cast<size_t>(kGroup * piece_bytes));
  std::vector<T> group(static_cast<size_t>(kGroup * width));
  out->resize(static_cast<size_t>(count * num_rows));
  for (int64_t row = 0; row < num_rows; row += kGroup) {
    const int64_t rows = std::min(kGroup, num_rows - row);
    // Whole rows lie together; pieces of rows are read one by one.
    const int64_t rows_per_read = piece_bytes == row_bytes ? rows : 1;
    for (int64_t r = 0; r < rows; r += rows_per_read) {
      ISOTHERM_RETURN_IF_ERROR(file.Read(
          tensor, (row + r) * row_bytes + first_block * info.block_bytes,
          {buffer.data() + r * piece_bytes, static_cast<size_t>(rows_per_read * piece_bytes)}));
    }
    for (int64_t r = 0; r < rows; ++r) {
      const std::byte* piece = buffer.data() + r * piece_bytes;
      if (!AllFinite(stored, piece, width)) return NotFiniteStored(file, tensor, row + r);
      T* to = group.data() + r * width;
      if constexpr (std::is_same_v<T, float>) {
        ISOTHERM_RETURN_IF_ERROR(DecodeRow(stored, piece, {to, static_cast<size_t>(width)}));
      } else {
        std::memcpy(to, piece, static_cast<size_t>(piece_bytes));
      }
    }
    for (int64_t c = 0; c < count; ++c) {
      T* to = out->data() + c * num_rows + row;
      const T* from = group.data() + skip + c;
      for (int64_t r = 0; r < rows; ++r) to[r] = from[r * width];
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadTensorColumns(const GgufFile& file, const GgufTensor& tensor,
                               const TensorRange& range) {
  ISOTHERM_ASSIGN_OR_RETURN(const DType stored, DTypeFromGgml(tensor.ggml_type));
  const bool keep_bits = stored == range.dtype && (stored == DType::kF16 || stored == DType::kBF16);
  const int64_t num_rows = tensor.rows();
  constexpr int64_t kFloatBytes = sizeof(float);
  // 512 columns make each row's piece of an F16 tensor 1 KiB: few enough reads for a large model.
  const int64_t tile = std::clamp<int64_t>(4 * kReadBytes / (num_rows * kFloatBytes), 32, 512);
  std::vector<float> decoded;
  std::vector<uint16_t> bits;
  for (int64_t done = 0; done < range.count; done += tile) {
    const int64_t first = range.first + done;
    const int64_t count = std::min(tile, range.count - done);
    ISOTHERM_RETURN_IF_ERROR(keep_bits
                                 ? TransposeTile(file, tensor, stored, first, count, &bits)
                                 : TransposeTile(file, tensor, stored, first, count, &decoded));
    for (int64_t c = 0; c < count; ++c) {
      std::byte* to = range.out + (done + c) * range.stride;
      if (keep_bits) {
        std::memcpy(to, bits.data() + c * num_rows, static_cast<size_t>(num_rows) * 2);
        continue;
      }
      ISOTHERM_RETURN_IF_ERROR(EncodeRow(
          range.dtype, {decoded.data() + c * num_rows, static_cast<size_t>(num_rows)}, to));
      if (!AllFinite(range.dtype, to, num_rows)) {
        return NotFiniteConverted(file, tensor, first + c, range.dtype);
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace isotherm
