#include "models/convert/conversion_plan.h"

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/base/checked_math.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "models/bundle_file.h"
#include "models/bundle_layout.h"
#include "models/quantize/block_codec.h"

namespace isotherm {
namespace {

constexpr char kFileTypeKey[] = "general.file_type";
constexpr char kQuantizationVersionKey[] = "general.quantization_version";

absl::Status UserMustDecide(absl::string_view what) {
  return WithExitCode(absl::FailedPreconditionError(what), ExitCode::kUsage);
}

// llama.cpp's number for files whose matrices are mostly of that type.
uint32_t FileType(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return 1;
    case DType::kQ4_0:
      return 2;
    case DType::kQ4_1:
      return 3;
    case DType::kQ8_0:
      return 7;
    case DType::kBF16:
      return 32;
    default:
      return 0;
  }
}

bool IsPredictor(absl::string_view name) {
  return absl::StartsWith(name, "blk.") &&
         (absl::EndsWith(name, ".fc1.weight") || absl::EndsWith(name, ".fc2.weight"));
}

class Planner {
 public:
  Planner(const ModelFile& model, const ConversionOptions& options)
      : model_(model),
        file_(model.gguf()),
        options_(options),
        to_powerinfer_(options.container.has_value()
                           ? *options.container == Container::kPowerInfer
                           : options.arena || model.gguf().is_powerinfer()),
        transpose_(to_powerinfer_ != model.gguf().is_powerinfer()),
        reorder_(options.arena != (model.bundle_file() != nullptr)) {}

  absl::StatusOr<ConversionPlan> Plan() {
    ISOTHERM_RETURN_IF_ERROR(CheckWishes());
    plan_.powerinfer = to_powerinfer_;
    plan_.alignment = static_cast<uint32_t>(file_.alignment());
    if (options_.arena) {
      plan_.alignment = std::max<uint32_t>(plan_.alignment, kBundleAlignment);
      plan_.bundle_rows = static_cast<uint32_t>(model_.config().bundle_rows());
    } else if (model_.bundle_file() != nullptr) {
      plan_.alignment = 32;  // the larger one was for the bundles
    }
    for (const GgufTensor& tensor : file_.tensors()) ISOTHERM_RETURN_IF_ERROR(AddTensor(tensor));
    PlanKeys();
    AddNotes();
    return std::move(plan_);
  }

 private:
  absl::Status CheckWishes() const {
    const ModelConfig& config = model_.config();
    const bool drops = options_.drop_predictors && config.sparse;
    const bool tells_relu = options_.relu && !to_powerinfer_ && !file_.Has(kActivationKey) &&
                            DenseActivation(config.architecture) != Activation::kRelu;
    if (options_.arena && !to_powerinfer_) {
      return UserMustDecide(
          "neurons in bundle order are a PowerInfer file's; leave --to gguf or --arena out");
    }
    if (!transpose_ && !reorder_ && !options_.type.has_value() && !drops && !tells_relu) {
      return UserMustDecide(absl::StrCat(
          "nothing to change: the model already is a ", options_.arena ? "bundle-ordered " : "",
          to_powerinfer_ ? "PowerInfer" : "plain GGUF",
          " file; give the other layout (--to), another order of its neurons (--arena) or another "
          "weight type (--type)"));
    }
    if (config.sparse && !to_powerinfer_ && !options_.drop_predictors) {
      return UserMustDecide(
          "the model's predictors have no place in a plain GGUF file: without them every neuron is "
          "computed for every token; --drop-predictors if that is wanted");
    }
    if (to_powerinfer_ && config.activation != Activation::kRelu) {
      return UserMustDecide(absl::StrCat(
          "a PowerInfer file is computed with relu, this model is a ", Name(config.activation),
          " one; --relu if it was trained with relu though its file cannot say so"));
    }
    return absl::OkStatus();
  }

  // The type that a matrix of `columns` will have.
  DType TypeFor(DType stored, int64_t columns, bool converted) {
    DType wanted = options_.type.value_or(stored);
    if (!options_.type.has_value() && converted && !CanEncode(stored)) wanted = DType::kQ8_0;
    if (columns % Info(wanted).block_elements == 0) return wanted;
    narrow_rows_ = true;
    return DType::kF16;
  }

  // "blk.3." and 0 for the gate, 1 for the up, 2 for the down matrix and -1 for the bundles of a
  // layer; nothing for other tensors.
  std::optional<std::pair<std::string, int>> NeuronTensor(const GgufTensor& tensor) const {
    if (!model_.Uses(tensor.name) || tensor.rows() < 2) return std::nullopt;
    absl::string_view stem = absl::StripSuffix(tensor.name, ".weight");
    const struct {
      absl::string_view name;
      int part;
    } kinds[] = {{"ffn_gate", 0}, {"ffn_up", 1}, {model_.down_tensor(), 2}, {"ffn_bundle", -1}};
    for (const auto& kind : kinds) {
      if (absl::ConsumeSuffix(&stem, kind.name)) return std::pair(std::string(stem), kind.part);
    }
    return std::nullopt;
  }

  // The matrices of a neuron's rows in their order: parts of NeuronTensor.
  std::vector<int> Parts() const {
    return model_.config().gated ? std::vector{0, 1, 2} : std::vector{1, 2};
  }

  // Where the rows of one part lie in the input.
  NeuronRows RowsOf(const std::string& layer, int part) const {
    if (model_.bundle_file() != nullptr) {
      const std::vector<int> parts = Parts();
      const int64_t dim = model_.config().model_dim;
      const auto at = std::find(parts.begin(), parts.end(), part) - parts.begin();
      return {.source = file_.FindTensor(absl::StrCat(layer, "ffn_bundle.weight")),
              .first_column = at * dim,
              .num_columns = dim};
    }
    const absl::string_view stem = part == 0   ? "ffn_gate"
                                   : part == 1 ? "ffn_up"
                                               : model_.down_tensor();
    return {.source = file_.FindTensor(absl::StrCat(layer, stem, ".weight")),
            .turned = part == 2 && !file_.is_powerinfer()};
  }

  // Bundles are of one type that is computed with as stored.
  absl::StatusOr<DType> BundleType() {
    std::set<std::string> stored;
    DType type = DType::kF16;
    for (const GgufTensor& tensor : file_.tensors()) {
      if (!NeuronTensor(tensor).has_value()) continue;
      type = static_cast<DType>(tensor.ggml_type);
      stored.insert(std::string(Name(type)));
    }
    const int64_t dim = model_.config().model_dim;
    if (options_.type.has_value()) return TypeFor(*options_.type, dim, /*converted=*/true);
    if (stored.size() == 1 && type != DType::kF32 && CanEncode(type)) return type;
    return UserMustDecide(absl::StrCat("the neurons are ", absl::StrJoin(stored, ", "),
                                       "; in bundle order they are all F16, BF16, Q8_0 or Q4_0: "
                                       "choose one (--type)"));
  }

  absl::Status AddBundles(const std::string& layer) {
    if (!layers_added_.insert(layer).second) return absl::OkStatus();
    ISOTHERM_ASSIGN_OR_RETURN(const DType dtype, BundleType());
    const ModelConfig& config = model_.config();
    ConvertedTensor out{
        .name = absl::StrCat(layer, "ffn_bundle.weight"),
        .shape = {BundleColumns(dtype, config.bundle_rows(), config.model_dim), config.ffn_dim},
        .from = ConvertedTensor::From::kBundles,
        .dtype = dtype};
    for (const int part : Parts()) {
      out.parts.push_back(RowsOf(layer, part));
      const auto stored = static_cast<DType>(out.parts.back().source->ggml_type);
      requantised_down_ |= out.parts.back().turned && Info(stored).block_elements > 1;
    }
    ISOTHERM_ASSIGN_OR_RETURN(out.part_bytes, RowBytes(dtype, config.model_dim));
    return AddMatrix(std::move(out));
  }

  absl::Status AddSlices(const std::string& layer) {
    const ModelConfig& config = model_.config();
    for (const int part : Parts()) {
      const bool turned = part == 2 && !to_powerinfer_;
      ConvertedTensor out{
          .name = absl::StrCat(layer,
                               part == 0   ? "ffn_gate"
                               : part == 1 ? "ffn_up"
                               : turned    ? "ffn_down"
                                           : "ffn_down_t",
                               ".weight"),
          .shape = {config.model_dim, config.ffn_dim},
          .from = turned ? ConvertedTensor::From::kColumns : ConvertedTensor::From::kRows,
          .slice = RowsOf(layer, part)};
      if (turned) std::swap(out.shape[0], out.shape[1]);
      out.source = out.slice.source;
      const auto stored = static_cast<DType>(out.source->ggml_type);
      out.dtype = TypeFor(stored, out.shape[0], turned);
      requantised_down_ |= turned && Info(stored).block_elements > 1;
      ISOTHERM_RETURN_IF_ERROR(AddMatrix(std::move(out)));
    }
    return absl::OkStatus();
  }

  // Counts its bytes.
  absl::Status AddMatrix(ConvertedTensor out) {
    ISOTHERM_ASSIGN_OR_RETURN(const int64_t row_bytes, RowBytes(out.dtype, out.shape[0]));
    ISOTHERM_ASSIGN_OR_RETURN(out.bytes, CheckedMul<int64_t>(row_bytes, out.shape[1]));
    quantised_ |= Info(out.dtype).block_elements > 1;
    plan_.tensors.push_back(std::move(out));
    return absl::OkStatus();
  }

  absl::Status AddTensor(const GgufTensor& source) {
    if (options_.drop_predictors && IsPredictor(source.name)) return absl::OkStatus();
    if (const auto neurons = NeuronTensor(source); neurons.has_value()) {
      if (options_.arena) return AddBundles(neurons->first);
      if (model_.bundle_file() != nullptr) return AddSlices(neurons->first);
    }
    ConvertedTensor out{.name = source.name,
                        .shape = {source.shape.begin(), source.shape.begin() + source.num_dims},
                        .source = &source,
                        .bytes = source.bytes};
    const bool matrix = model_.Uses(source.name) && source.rows() > 1;
    const std::string stem(absl::StripSuffix(absl::StripSuffix(source.name, ".weight"), ".bias"));
    if (transpose_ && model_.Uses(source.name) &&
        absl::EndsWith(stem, absl::StrCat(".", model_.down_tensor()))) {
      out.name =
          absl::StrCat(absl::StripSuffix(stem, model_.down_tensor()),
                       to_powerinfer_ ? "ffn_down_t" : "ffn_down", source.name.substr(stem.size()));
      if (matrix) out.from = ConvertedTensor::From::kColumns;
    }
    // A position is one row a token: a few megabytes, and no product to speed up.
    if (matrix && source.name != "position_embd.weight") {
      const bool turned = out.from == ConvertedTensor::From::kColumns;
      if (turned) out.shape = {source.rows(), source.columns()};
      const auto stored = static_cast<DType>(source.ggml_type);
      out.dtype = TypeFor(stored, out.shape[0], turned);
      if (!turned) out.from = ConvertedTensor::From::kRows;
      if (turned && Info(stored).block_elements > 1) requantised_down_ = true;
      ISOTHERM_ASSIGN_OR_RETURN(const int64_t row_bytes, RowBytes(out.dtype, out.shape[0]));
      ISOTHERM_ASSIGN_OR_RETURN(
          out.bytes, CheckedMul<int64_t>(row_bytes, turned ? source.columns() : source.rows()));
      quantised_ |= Info(out.dtype).block_elements > 1;
    }
    plan_.tensors.push_back(std::move(out));
    return absl::OkStatus();
  }

  void PlanKeys() {
    const ModelConfig& config = model_.config();
    const Activation dense = DenseActivation(config.architecture);
    if (options_.type.has_value()) plan_.file_type = FileType(*options_.type);
    if (!to_powerinfer_ && config.activation != dense) plan_.activation = config.activation;
    plan_.add_quantization_version = quantised_ && !file_.Has(kQuantizationVersionKey);
    for (std::string& key : file_.KeysInFileOrder()) {
      // Replaced, or said by the PowerInfer layout itself.
      if ((options_.arena || model_.bundle_file() != nullptr) &&
          (key == kAlignmentKey || key == kBundleRowsKey)) {
        continue;
      }
      if (key == kActivationKey || (key == kFileTypeKey && plan_.file_type.has_value())) continue;
      plan_.copied_keys.push_back(std::move(key));
    }
  }

  void AddNotes() {
    const ModelConfig& config = model_.config();
    if (requantised_down_) {
      plan_.notes.push_back(
          "the down matrices are quantised: turning them decodes and encodes them once more");
    }
    if (options_.arena) {
      plan_.notes.push_back(
          "neurons are in bundle order: PowerInfer and llama.cpp cannot read the file");
    }
    if (narrow_rows_) {
      plan_.notes.push_back(
          absl::StrCat("matrices whose rows are no multiple of a block stay ", Name(DType::kF16)));
    }
    if (options_.drop_predictors && config.sparse) {
      plan_.notes.push_back(
          "the predictors are left out: every neuron is computed for every token");
    }
    if (plan_.activation.has_value()) {
      plan_.notes.push_back(
          absl::StrCat("the model uses ", Name(*plan_.activation), ": Isotherm reads that from ",
                       kActivationKey, ", other programs take a ", config.architecture_name,
                       " file for a ", Name(DenseActivation(config.architecture)), " one"));
    }
    if (to_powerinfer_ && (!config.sparse || options_.drop_predictors)) {
      plan_.notes.push_back(
          "the file has no predictors: Isotherm computes every neuron, PowerInfer refuses it");
    }
    if (to_powerinfer_ && options_.type == DType::kBF16) {
      plan_.notes.push_back("PowerInfer itself does not know BF16");
    }
  }

  const ModelFile& model_;
  const GgufFile& file_;
  const ConversionOptions& options_;
  const bool to_powerinfer_, transpose_, reorder_;
  std::set<std::string> layers_added_;  // whose bundles are planned
  ConversionPlan plan_;
  bool requantised_down_ = false, narrow_rows_ = false, quantised_ = false;
};

}  // namespace

int64_t ConversionPlan::data_bytes() const {
  int64_t sum = 0;
  for (const ConvertedTensor& tensor : tensors) sum += tensor.bytes;
  return sum;
}

absl::StatusOr<ConversionPlan> PlanConversion(const ModelFile& model,
                                              const ConversionOptions& options) {
  return Planner(model, options).Plan();
}

}  // namespace isotherm
