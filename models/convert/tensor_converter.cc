#include "models/convert/tensor_converter.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "common/base/status_macros.h"

namespace isotherm {
namespace {

// Rows of a piece that are columns of the source: as many as ReadTensorColumns turns at a time.
constexpr int64_t kMinColumns = 32, kMaxColumns = 512;

}  // namespace

TensorConverter::TensorConverter(const GgufFile& file, int num_threads, int64_t piece_bytes)
    : file_(file),
      piece_bytes_(piece_bytes),
      pool_({.num_threads = num_threads, .name = "convert"}) {}

absl::Status TensorConverter::WriteBytes(const ConvertedTensor& tensor, GgufWriter& writer,
                                         const std::function<void(int64_t)>& advance) {
  for (int64_t at = 0; at < tensor.bytes; at += piece_bytes_) {
    buffer_.resize(static_cast<size_t>(std::min(piece_bytes_, tensor.bytes - at)));
    ISOTHERM_RETURN_IF_ERROR(file_.Read(*tensor.source, at, buffer_));
    ISOTHERM_RETURN_IF_ERROR(writer.Write(buffer_));
    advance(static_cast<int64_t>(buffer_.size()));
  }
  return absl::OkStatus();
}

absl::Status TensorConverter::ReadRows(const ConvertedTensor& tensor, TensorRange range) const {
  switch (tensor.from) {
    case ConvertedTensor::From::kColumns:
      range.first += tensor.slice.first_column;
      return ReadTensorColumns(file_, *tensor.source, range);
    case ConvertedTensor::From::kBundles:
      return ReadBundles(tensor, range);
    default:
      range.first_column = tensor.slice.first_column;
      range.num_columns = tensor.slice.num_columns;
      return ReadTensorRows(file_, *tensor.source, range);
  }
}

absl::Status TensorConverter::ReadBundles(const ConvertedTensor& tensor, TensorRange range) const {
  const int64_t used = tensor.part_bytes * static_cast<int64_t>(tensor.parts.size());
  for (int64_t n = 0; n < range.count; ++n) {
    std::memset(range.out + n * range.stride + used, 0, static_cast<size_t>(range.stride - used));
  }
  for (const NeuronRows& part : tensor.parts) {
    range.first_column = part.first_column;
    range.num_columns = part.num_columns;
    ISOTHERM_RETURN_IF_ERROR(part.turned ? ReadTensorColumns(file_, *part.source, range)
                                         : ReadTensorRows(file_, *part.source, range));
    range.out += tensor.part_bytes;
  }
  return absl::OkStatus();
}

absl::Status TensorConverter::Write(const ConvertedTensor& tensor, GgufWriter& writer,
                                    const std::function<void(int64_t)>& advance) {
  if (tensor.from == ConvertedTensor::From::kBytes) return WriteBytes(tensor, writer, advance);
  const bool columns = tensor.from == ConvertedTensor::From::kColumns ||
                       std::any_of(tensor.parts.begin(), tensor.parts.end(),
                                   [](const NeuronRows& part) { return part.turned; });
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t row_bytes, RowBytes(tensor.dtype, tensor.shape[0]));
  const int64_t num_rows = tensor.bytes / row_bytes;
  const int64_t piece = columns ? std::clamp(piece_bytes_ / row_bytes, kMinColumns, kMaxColumns)
                                : std::max<int64_t>(1, piece_bytes_ / row_bytes);
  const int64_t at_once = std::min(num_rows, piece * pool_.num_threads());
  buffer_.resize(static_cast<size_t>(at_once * row_bytes));
  std::vector<absl::Status> statuses(static_cast<size_t>(pool_.num_threads()));
  for (int64_t first = 0; first < num_rows; first += at_once) {
    const int64_t count = std::min(at_once, num_rows - first);
    pool_.Run([&](int t) {
      const int64_t begin = std::min(count, t * piece), end = std::min(count, begin + piece);
      if (begin == end) return;
      statuses[static_cast<size_t>(t)] =
          ReadRows(tensor, {.first = first + begin,
                            .count = end - begin,
                            .dtype = tensor.dtype,
                            .out = buffer_.data() + begin * row_bytes,
                            .stride = row_bytes});
    });
    for (const absl::Status& status : statuses) ISOTHERM_RETURN_IF_ERROR(status);
    const int64_t bytes = count * row_bytes;
    ISOTHERM_RETURN_IF_ERROR(writer.Write(std::span(buffer_).first(static_cast<size_t>(bytes))));
    advance(bytes);
  }
  return absl::OkStatus();
}

}  // namespace isotherm
