#include "models/model_file.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/checked_math.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "models/tensor_reader.h"

namespace isotherm {
namespace {

// The type a stored tensor is computed in.
DType ComputeType(DType stored) {
  switch (stored) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
    case DType::kQ8_0:
    case DType::kQ4_0:
      return stored;
    default:
      return DType::kQ8_0;
  }
}

// Tensors that alter what is computed: leaving one out would give wrong answers, where any other
// extra tensor is harmless.
bool ChangesTheMaths(absl::string_view name) {
  if (absl::EndsWith(name, ".bias") || absl::StrContains(name, "norm")) return true;
  if (!absl::StartsWith(name, "blk.")) return name == "position_embd.weight";
  if (absl::EndsWith(name, ".scale")) return true;
  for (const absl::string_view part : {"_exps", "_shexp", "ffn_gate", "attn_qkv"}) {
    if (absl::StrContains(name, part)) return true;
  }
  return false;
}

}  // namespace

std::string ModelFile::LayerTensor(int64_t layer, absl::string_view stem) {
  return absl::StrCat("blk.", layer, ".", stem, ".weight");
}

std::string ModelFile::LayerBias(int64_t layer, absl::string_view stem) {
  return absl::StrCat("blk.", layer, ".", stem, ".bias");
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
                                                    int64_t rows) {
  const GgufTensor* tensor = file_->FindTensor(name);
  if (tensor == nullptr)
    return BadDataError(file_->path(), absl::StrCat("tensor ", name, " is missing"));
  const auto& shape = tensor->shape;
  if (shape[0] != columns || shape[1] != rows || shape[2] != 1 || shape[3] != 1) {
    return BadDataError(file_->path(),
                        absl::StrCat("tensor ", name, " is [", absl::StrJoin(shape, ", "), "]; [",
                                     columns, ", ", rows, "] is wanted"));
  }
  const absl::StatusOr<DType> dtype = DTypeFromGgml(tensor->ggml_type);
  if (!dtype.ok()) {
    return BadDataError(file_->path(),
                        absl::StrCat("tensor ", name, ": ", dtype.status().message()));
  }
  used_.insert(tensor->name);
  return tensor;
}

absl::Status ModelFile::ExpectNorm(const std::string& stem) {
  ISOTHERM_RETURN_IF_ERROR(Expect(absl::StrCat(stem, ".weight"), config_.model_dim, 1).status());
  if (config_.norm != NormKind::kLayer) return absl::OkStatus();
  return Expect(absl::StrCat(stem, ".bias"), config_.model_dim, 1).status();
}

absl::Status ModelFile::CheckTensors() {
  const int64_t dim = config_.model_dim;
  transposed_down_ = file_->is_powerinfer();
  ISOTHERM_ASSIGN_OR_RETURN(bundles_, ReadBundleFile(*file_, config_));
  ISOTHERM_RETURN_IF_ERROR(Expect("token_embd.weight", dim, config_.vocab_size).status());
  ISOTHERM_RETURN_IF_ERROR(ExpectNorm("output_norm"));
  if (!config_.tied_output) {
    ISOTHERM_RETURN_IF_ERROR(Expect("output.weight", dim, config_.vocab_size).status());
  }
  if (config_.learned_positions) {
    ISOTHERM_RETURN_IF_ERROR(
        Expect("position_embd.weight", dim, config_.context_length + config_.position_offset)
            .status());
  }
  if (config_.rotary && Has("rope_freqs.weight")) {
    ISOTHERM_RETURN_IF_ERROR(Expect("rope_freqs.weight", config_.rope_dims / 2, 1).status());
  }
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    ISOTHERM_RETURN_IF_ERROR(CheckLayer(layer));
  }
  for (const GgufTensor& tensor : file_->tensors()) {
    if (!used_.contains(tensor.name) && ChangesTheMaths(tensor.name)) {
      return WithExitCode(absl::UnimplementedError(absl::StrCat(
                              file_->path(), ": tensor ", tensor.name, " belongs to a variant of ",
                              config_.architecture_name,
                              " that is not supported: without it answers would be wrong")),
                          ExitCode::kBadData);
    }
  }
  return ChooseLayout();
}

std::span<const char* const> ModelFile::NeuronRows() const {
  static constexpr const char* kRows[] = {"ffn_gate", "ffn_up"};
  return std::span(kRows).subspan(config_.gated ? 0 : 1);
}

absl::Status ModelFile::CheckLayer(int64_t layer) {
  const int64_t dim = config_.model_dim, ffn = config_.ffn_dim;
  const int64_t q_dim = config_.num_q_heads * config_.head_dim;
  const int64_t kv_dim = config_.num_kv_heads * config_.head_dim;
  const auto name = [layer](absl::string_view stem) { return LayerTensor(layer, stem); };
  const auto matrix = [&](absl::string_view stem, int64_t columns, int64_t rows,
                          bool bias) -> absl::Status {
    ISOTHERM_RETURN_IF_ERROR(Expect(name(stem), columns, rows).status());
    if (!bias) return absl::OkStatus();
    return Expect(LayerBias(layer, stem), rows, 1).status();
  };
  for (const std::string& norm : {config_.attention_norm_tensor, config_.ffn_norm_tensor}) {
    ISOTHERM_RETURN_IF_ERROR(ExpectNorm(absl::StrCat("blk.", layer, ".", norm)));
  }
  const bool bias = config_.attention_bias;
  if (config_.fused_qkv) {
    ISOTHERM_RETURN_IF_ERROR(matrix("attn_qkv", dim, q_dim + 2 * kv_dim, bias));
  } else {
    ISOTHERM_RETURN_IF_ERROR(matrix("attn_q", dim, q_dim, bias));
    ISOTHERM_RETURN_IF_ERROR(matrix("attn_k", dim, kv_dim, bias));
    ISOTHERM_RETURN_IF_ERROR(matrix("attn_v", dim, kv_dim, bias));
  }
  ISOTHERM_RETURN_IF_ERROR(matrix("attn_output", q_dim, dim, bias));
  if (bundles_.has_value()) {
    used_.insert(file_->FindTensor(name("ffn_bundle"))->name);
    neuron_types_.push_back(bundles_->dtype);
  } else {
    for (const char* stem : NeuronRows()) {
      ISOTHERM_ASSIGN_OR_RETURN(const GgufTensor* tensor, Expect(name(stem), dim, ffn));
      neuron_types_.push_back(static_cast<DType>(tensor->ggml_type));
    }
    ISOTHERM_ASSIGN_OR_RETURN(
        const GgufTensor* down,
        Expect(name(down_tensor()), transposed_down_ ? dim : ffn, transposed_down_ ? ffn : dim));
    neuron_types_.push_back(static_cast<DType>(down->ggml_type));
  }
  if (config_.ffn_bias) {
    ISOTHERM_RETURN_IF_ERROR(Expect(LayerBias(layer, "ffn_up"), ffn, 1).status());
    ISOTHERM_RETURN_IF_ERROR(Expect(LayerBias(layer, down_tensor()), dim, 1).status());
  }
  if (config_.sparse) {
    // The rank is the file's choice, layer by layer; fc1 and fc2 must agree on it.
    const GgufTensor* fc1 = file_->FindTensor(name("fc1"));
    const int64_t rank = fc1 == nullptr ? 1 : fc1->rows();
    ISOTHERM_RETURN_IF_ERROR(Expect(name("fc1"), dim, rank).status());
    ISOTHERM_RETURN_IF_ERROR(Expect(name("fc2"), rank, ffn).status());
  }
  return absl::OkStatus();
}

absl::Status ModelFile::ChooseLayout() {
  std::vector<std::string> changes;
  std::set<std::string> repacked;
  for (const absl::string_view name : used_) {
    const auto stored = static_cast<DType>(file_->FindTensor(name)->ggml_type);
    if (ComputeType(stored) != stored) repacked.insert(std::string(Name(stored)));
  }
  if (!repacked.empty()) {
    changes.push_back(absl::StrCat(absl::StrJoin(repacked, ", "), " weights are repacked to ",
                                   Name(DType::kQ8_0)));
  }
  const DType first = neuron_types_.front();
  const auto all = [this](auto predicate) {
    return std::all_of(neuron_types_.begin(), neuron_types_.end(), predicate);
  };
  DType dtype = ComputeType(first);
  if (!all([&](DType type) { return ComputeType(type) == dtype; })) {
    // Plain types keep 16 bits; anything quantised sets the precision.
    dtype = all([](DType type) { return type == DType::kF32 || type == DType::kF16; }) ? DType::kF16
            : all([](DType type) { return type == DType::kF32 || type == DType::kBF16; })
                ? DType::kBF16
                : DType::kQ8_0;
    changes.push_back(
        absl::StrCat("feed-forward weights of different types are repacked to ", Name(dtype)));
  } else if (dtype == DType::kF32) {
    dtype = DType::kF16;
    changes.push_back("F32 feed-forward weights are repacked to F16");
  }
  const bool quantised_down = std::any_of(neuron_types_.begin(), neuron_types_.end(),
                                          [](DType t) { return Info(t).block_elements > 1; });
  if (!transposed_down_ && quantised_down) {
    changes.push_back(absl::StrCat("ffn_down is requantised by neuron to ", Name(dtype)));
  }
  repacked_ = absl::StrJoin(changes, "; ");

  const absl::StatusOr<int64_t> row_bytes = RowBytes(dtype, config_.model_dim);
  if (!row_bytes.ok()) return BadDataError(file_->path(), row_bytes.status().message());
  layout_ = {.dtype = dtype,
             .rows = config_.bundle_rows(),
             .model_dim = config_.model_dim,
             .row_bytes = *row_bytes,
             .bundle_bytes = RoundUp<int64_t>(config_.bundle_rows() * *row_bytes, 64),
             .num_neurons = config_.ffn_dim,
             .num_layers = config_.num_layers};
  if (bundles_.has_value()) layout_.bundle_bytes = bundles_->bundle_bytes;
  return absl::OkStatus();
}

absl::StatusOr<Matrix> ModelFile::ReadMatrix(absl::string_view name) const {
  const GgufTensor* tensor = file_->FindTensor(name);
  if (tensor == nullptr)
    return BadDataError(file_->path(), absl::StrCat("tensor ", name, " is missing"));
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
  ISOTHERM_RETURN_IF_ERROR(ReadTensorRows(*file_, *tensor,
                                          {.count = matrix.rows,
                                           .dtype = matrix.dtype,
                                           .out = matrix.storage.data(),
                                           .stride = matrix.row_bytes}));
  return matrix;
}

absl::StatusOr<std::vector<float>> ModelFile::ReadVector(absl::string_view name) const {
  const GgufTensor* tensor = file_->FindTensor(name);
  if (tensor == nullptr)
    return BadDataError(file_->path(), absl::StrCat("tensor ", name, " is missing"));
  if (tensor->rows() != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", name, " has ", tensor->rows(), " rows; a vector has one"));
  }
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t bytes, RowBytes(DType::kF32, tensor->columns()));
  std::vector<float> out(static_cast<size_t>(tensor->columns()));
  ISOTHERM_RETURN_IF_ERROR(ReadTensorRows(
      *file_, *tensor,
      {.count = 1, .out = reinterpret_cast<std::byte*>(out.data()), .stride = bytes}));
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
  TensorRange range{.first = first,
                    .count = count,
                    .dtype = layout_.dtype,
                    .out = out.data(),
                    .stride = layout_.bundle_bytes};
  if (bundles_.has_value()) {
    return ReadTensorRows(*file_, *file_->FindTensor(LayerTensor(layer, "ffn_bundle")), range);
  }
  for (const char* stem : NeuronRows()) {
    const GgufTensor& tensor = *file_->FindTensor(LayerTensor(layer, stem));
    ISOTHERM_RETURN_IF_ERROR(ReadTensorRows(*file_, tensor, range));
    range.out += layout_.row_bytes;
  }
  const GgufTensor& down = *file_->FindTensor(LayerTensor(layer, down_tensor()));
  ISOTHERM_RETURN_IF_ERROR(transposed_down_ ? ReadTensorRows(*file_, down, range)
                                            : ReadTensorColumns(*file_, down, range));
  const int64_t used = layout_.rows * layout_.row_bytes;
  for (int64_t n = 0; n < count; ++n) {
    std::memset(out.data() + n * layout_.bundle_bytes + used, 0,
                static_cast<size_t>(layout_.bundle_bytes - used));
  }
  return absl::OkStatus();
}

}  // namespace isotherm
