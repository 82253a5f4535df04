#include "models/model_file.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "models/quantize/block_codec.h"

namespace isotherm {
namespace {

absl::Status Bad(const GgufFile& file, absl::string_view what) {
  return WithExitCode(absl::DataLossError(absl::StrCat(file.path(), ": ", what)),
                      ExitCode::kBadData);
}

// The type a stored tensor is computed in.
DType ComputeType(DType stored) { return stored == DType::kQ4_1 ? DType::kQ8_0 : stored; }

}  // namespace

uint64_t BundleLayout::Hash() const {
  uint64_t hash = 0xcbf29ce484222325u;
  constexpr uint64_t kLayoutVersion = 1;
  for (const uint64_t word :
       {kLayoutVersion, static_cast<uint64_t>(dtype), static_cast<uint64_t>(rows),
        static_cast<uint64_t>(model_dim), static_cast<uint64_t>(bundle_bytes),
        static_cast<uint64_t>(num_neurons), static_cast<uint64_t>(num_layers)}) {
    hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 29;
  }
  return hash;
}

std::string ModelFile::LayerTensor(int64_t layer, absl::string_view stem) {
  return absl::StrCat("blk.", layer, ".", stem, ".weight");
}

absl::StatusOr<std::unique_ptr<ModelFile>> ModelFile::Open(const std::string& path,
                                                           const ModelOptions& options) {
  std::unique_ptr<ModelFile> model(new ModelFile());
  ISOTHERM_ASSIGN_OR_RETURN(model->file_, GgufFile::Open(path));
  ISOTHERM_ASSIGN_OR_RETURN(model->config_, ReadModelConfig(*model->file_, options));
  ISOTHERM_RETURN_IF_ERROR(model->CheckTensors());
  return model;
}

absl::StatusOr<const GgufTensor*> ModelFile::Expect(const std::string& name, int64_t columns,
                                                    int64_t rows) const {
  const GgufTensor* tensor = file_->FindTensor(name);
  if (tensor == nullptr) return Bad(*file_, absl::StrCat("tensor ", name, " is missing"));
  if (tensor->columns() != columns || (rows > 0 && tensor->rows() != rows)) {
    return Bad(*file_, absl::StrCat("tensor ", name, " is [", tensor->columns(), ", ",
                                    tensor->rows(), "]; [", columns, ", ",
                                    rows > 0 ? absl::StrCat(rows) : "any", "] is wanted"));
  }
  const absl::StatusOr<DType> dtype = DTypeFromGgml(tensor->ggml_type);
  if (!dtype.ok())
    return Bad(*file_, absl::StrCat("tensor ", name, ": ", dtype.status().message()));
  return tensor;
}

absl::Status ModelFile::CheckTensors() {
  const int64_t dim = config_.model_dim, ffn = config_.ffn_dim;
  const int64_t q_dim = config_.num_q_heads * config_.head_dim,
                kv_dim = config_.num_kv_heads * config_.head_dim;
  transposed_down_ = file_->is_powerinfer();
  ISOTHERM_RETURN_IF_ERROR(Expect("token_embd.weight", dim, config_.vocab_size).status());
  ISOTHERM_RETURN_IF_ERROR(Expect("output_norm.weight", dim, 1).status());
  if (!config_.tied_output)
    ISOTHERM_RETURN_IF_ERROR(Expect("output.weight", dim, config_.vocab_size).status());
  if (file_->FindTensor("rope_freqs.weight") != nullptr) {
    ISOTHERM_RETURN_IF_ERROR(Expect("rope_freqs.weight", config_.rope_dims / 2, 1).status());
  }

  bool mixed = false, requantised = false;
  std::optional<DType> bundle_type;
  for (int64_t l = 0; l < config_.num_layers; ++l) {
    ISOTHERM_RETURN_IF_ERROR(Expect(LayerTensor(l, "attn_norm"), dim, 1).status());
    ISOTHERM_RETURN_IF_ERROR(Expect(LayerTensor(l, "ffn_norm"), dim, 1).status());
    ISOTHERM_RETURN_IF_ERROR(Expect(LayerTensor(l, "attn_q"), dim, q_dim).status());
    ISOTHERM_RETURN_IF_ERROR(Expect(LayerTensor(l, "attn_k"), dim, kv_dim).status());
    ISOTHERM_RETURN_IF_ERROR(Expect(LayerTensor(l, "attn_v"), dim, kv_dim).status());
    ISOTHERM_RETURN_IF_ERROR(Expect(LayerTensor(l, "attn_output"), q_dim, dim).status());
    ISOTHERM_ASSIGN_OR_RETURN(const GgufTensor* gate, Expect(LayerTensor(l, "ffn_gate"), dim, ffn));
    ISOTHERM_ASSIGN_OR_RETURN(const GgufTensor* up, Expect(LayerTensor(l, "ffn_up"), dim, ffn));
    ISOTHERM_ASSIGN_OR_RETURN(const GgufTensor* down,
                              transposed_down_ ? Expect(LayerTensor(l, "ffn_down_t"), dim, ffn)
                                               : Expect(LayerTensor(l, "ffn_down"), ffn, dim));
    for (const GgufTensor* tensor : {gate, up, down}) {
      const auto stored = static_cast<DType>(tensor->ggml_type);
      const DType type = ComputeType(stored);
      requantised |= type != stored ||
                     (tensor == down && !transposed_down_ && Info(stored).block_elements > 1);
      if (!bundle_type.has_value()) bundle_type = type;
      mixed |= type != *bundle_type;
    }
    if (config_.sparse) {
      const GgufTensor* fc1 = file_->FindTensor(LayerTensor(l, "fc1"));
      const int64_t rank = fc1 == nullptr ? 0 : fc1->rows();
      ISOTHERM_RETURN_IF_ERROR(Expect(LayerTensor(l, "fc1"), dim, rank).status());
      ISOTHERM_RETURN_IF_ERROR(Expect(LayerTensor(l, "fc2"), rank, ffn).status());
    }
  }
  if (mixed) {
    bundle_type = DType::kQ8_0;
    requantised = true;
  }
  if (*bundle_type == DType::kF32) {
    bundle_type = DType::kF16;
    requantised = true;
  }
  const absl::StatusOr<int64_t> row_bytes = RowBytes(*bundle_type, dim);
  if (!row_bytes.ok()) return Bad(*file_, row_bytes.status().message());
  layout_ = {.dtype = *bundle_type,
             .rows = 3,
             .model_dim = dim,
             .row_bytes = *row_bytes,
             .bundle_bytes = RoundUp<int64_t>(3 * *row_bytes, 64),
             .num_neurons = ffn,
             .num_layers = config_.num_layers};
  if (requantised) {
    repacked_ =
        absl::StrCat("feed-forward weights are repacked to ", Name(*bundle_type),
                     " while loading (`isotherm models build` or a PowerInfer file avoids it)");
  }
  return absl::OkStatus();
}

absl::Status ModelFile::CopyRows(const GgufTensor& tensor, int64_t first, int64_t count,
                                 DType dtype, std::byte* out, int64_t stride) const {
  const auto stored = static_cast<DType>(tensor.ggml_type);
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t stored_bytes, RowBytes(stored, tensor.columns()));
  // A few megabytes at a time: one read call for many rows, memory bounded.
  const int64_t rows_per_read = std::max<int64_t>(1, (int64_t{4} << 20) / stored_bytes);
  std::vector<std::byte> buffer(static_cast<size_t>(std::min(rows_per_read, count) * stored_bytes));
  std::vector<float> decoded(stored == dtype ? 0 : static_cast<size_t>(tensor.columns()));
  for (int64_t done = 0; done < count; done += rows_per_read) {
    const int64_t rows = std::min(rows_per_read, count - done);
    const std::span<std::byte> piece(buffer.data(), static_cast<size_t>(rows * stored_bytes));
    ISOTHERM_RETURN_IF_ERROR(file_->Read(tensor, (first + done) * stored_bytes, piece));
    for (int64_t r = 0; r < rows; ++r) {
      const std::byte* from = buffer.data() + r * stored_bytes;
      std::byte* to = out + (done + r) * stride;
      if (stored == dtype) {
        std::memcpy(to, from, static_cast<size_t>(stored_bytes));
      } else {
        ISOTHERM_RETURN_IF_ERROR(DecodeRow(stored, from, decoded));
        ISOTHERM_RETURN_IF_ERROR(EncodeRow(dtype, decoded, to));
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Matrix> ModelFile::ReadMatrix(absl::string_view name) const {
  const GgufTensor* tensor = file_->FindTensor(name);
  if (tensor == nullptr) return Bad(*file_, absl::StrCat("tensor ", name, " is missing"));
  ISOTHERM_ASSIGN_OR_RETURN(const DType stored, DTypeFromGgml(tensor->ggml_type));
  Matrix matrix{.dtype = ComputeType(stored), .rows = tensor->rows(), .columns = tensor->columns()};
  ISOTHERM_ASSIGN_OR_RETURN(matrix.row_bytes, RowBytes(matrix.dtype, matrix.columns));
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t bytes, CheckedMul(matrix.row_bytes, matrix.rows));
  matrix.storage = AlignedBytes(static_cast<size_t>(bytes));
  if (matrix.storage.data() == nullptr) {
    return WithExitCode(absl::ResourceExhaustedError(
                            absl::StrCat("tensor ", name, " needs ", bytes, " bytes of memory")),
                        ExitCode::kShortage);
  }
  ISOTHERM_RETURN_IF_ERROR(
      CopyRows(*tensor, 0, matrix.rows, matrix.dtype, matrix.storage.data(), matrix.row_bytes));
  return matrix;
}

absl::StatusOr<std::vector<float>> ModelFile::ReadVector(absl::string_view name) const {
  const GgufTensor* tensor = file_->FindTensor(name);
  if (tensor == nullptr) return Bad(*file_, absl::StrCat("tensor ", name, " is missing"));
  ISOTHERM_RETURN_IF_ERROR(DTypeFromGgml(tensor->ggml_type).status());
  std::vector<float> out(static_cast<size_t>(tensor->columns()));
  ISOTHERM_RETURN_IF_ERROR(CopyRows(*tensor, 0, 1, DType::kF32,
                                    reinterpret_cast<std::byte*>(out.data()),
                                    static_cast<int64_t>(out.size() * 4)));
  return out;
}

absl::Status ModelFile::PackBundles(int64_t layer, int64_t first, int64_t count,
                                    std::span<std::byte> out) const {
  if (layer < 0 || layer >= layout_.num_layers || first < 0 || count < 0 ||
      first > layout_.num_neurons - count ||
      static_cast<int64_t>(out.size()) != count * layout_.bundle_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("bundles ", first, " + ", count, " of layer ", layer, " into ", out.size(),
                     " bytes; the model has ", layout_.num_layers, " layers of ",
                     layout_.num_neurons, " neurons of ", layout_.bundle_bytes, " bytes"));
  }
  if (count == 0) return absl::OkStatus();
  const GgufTensor& gate = *file_->FindTensor(LayerTensor(layer, "ffn_gate"));
  const GgufTensor& up = *file_->FindTensor(LayerTensor(layer, "ffn_up"));
  ISOTHERM_RETURN_IF_ERROR(
      CopyRows(gate, first, count, layout_.dtype, out.data(), layout_.bundle_bytes));
  ISOTHERM_RETURN_IF_ERROR(CopyRows(up, first, count, layout_.dtype, out.data() + layout_.row_bytes,
                                    layout_.bundle_bytes));
  std::byte* down_out = out.data() + 2 * layout_.row_bytes;
  if (transposed_down_) {
    const GgufTensor& down = *file_->FindTensor(LayerTensor(layer, "ffn_down_t"));
    ISOTHERM_RETURN_IF_ERROR(
        CopyRows(down, first, count, layout_.dtype, down_out, layout_.bundle_bytes));
  } else {
    // [model_dim rows of ffn_dim]: decode whole rows, keep our columns, encode them as rows.
    const GgufTensor& down = *file_->FindTensor(LayerTensor(layer, "ffn_down"));
    const auto stored = static_cast<DType>(down.ggml_type);
    ISOTHERM_ASSIGN_OR_RETURN(const int64_t stored_bytes, RowBytes(stored, down.columns()));
    std::vector<std::byte> row(static_cast<size_t>(stored_bytes));
    std::vector<float> decoded(static_cast<size_t>(down.columns()));
    std::vector<float> columns(static_cast<size_t>(count * layout_.model_dim));
    for (int64_t r = 0; r < layout_.model_dim; ++r) {
      ISOTHERM_RETURN_IF_ERROR(file_->Read(down, r * stored_bytes, row));
      ISOTHERM_RETURN_IF_ERROR(DecodeRow(stored, row.data(), decoded));
      for (int64_t n = 0; n < count; ++n) {
        columns[static_cast<size_t>(n * layout_.model_dim + r)] =
            decoded[static_cast<size_t>(first + n)];
      }
    }
    for (int64_t n = 0; n < count; ++n) {
      const std::span<const float> column(columns.data() + n * layout_.model_dim,
                                          static_cast<size_t>(layout_.model_dim));
      ISOTHERM_RETURN_IF_ERROR(
          EncodeRow(layout_.dtype, column, down_out + n * layout_.bundle_bytes));
    }
  }
  const int64_t used = 3 * layout_.row_bytes;
  for (int64_t n = 0; n < count; ++n) {
    std::memset(out.data() + n * layout_.bundle_bytes + used, 0,
                static_cast<size_t>(layout_.bundle_bytes - used));
  }
  return absl::OkStatus();
}

}  // namespace isotherm
