#include "models/convert/conversion_plan.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/base/checked_math.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
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
                           : model.gguf().is_powerinfer()),
        transpose_(to_powerinfer_ != model.gguf().is_powerinfer()) {}

  absl::StatusOr<ConversionPlan> Plan() {
    ISOTHERM_RETURN_IF_ERROR(CheckWishes());
    plan_.powerinfer = to_powerinfer_;
    plan_.alignment = static_cast<uint32_t>(file_.alignment());
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
    if (!transpose_ && !options_.type.has_value() && !drops && !tells_relu) {
      return UserMustDecide(absl::StrCat(
          "nothing to change: the model already is a ",
          to_powerinfer_ ? "PowerInfer" : "plain GGUF",
          " file; give the other layout (--to) or another weight type (--type)"));
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

  absl::Status AddTensor(const GgufTensor& source) {
    if (options_.drop_predictors && IsPredictor(source.name)) return absl::OkStatus();
    ConvertedTensor out{.name = source.name,
                        .shape = {source.shape.begin(), source.shape.begin() + source.num_dims},
                        .source = &source,
                        .bytes = source.bytes};
    const bool matrix = model_.Uses(source.name) && source.rows() > 1;
    const std::string stem(
        absl::StripSuffix(absl::StripSuffix(source.name, ".weight"), ".bias"));
    if (transpose_ && model_.Uses(source.name) &&
        absl::EndsWith(stem, absl::StrCat(".", model_.down_tensor()))) {
      out.name = absl::StrCat(absl::StripSuffix(stem, model_.down_tensor()),
                              to_powerinfer_ ? "ffn_down_t" : "ffn_down",
                              source.name.substr(stem.size()));
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
      ISOTHERM_ASSIGN_OR_RETURN(out.bytes, CheckedMul<int64_t>(row_bytes, turned ? source.columns()
                                                                                : source.rows()));
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
    if (narrow_rows_) {
      plan_.notes.push_back(absl::StrCat("matrices whose rows are no multiple of a block stay ",
                                         Name(DType::kF16)));
    }
    if (options_.drop_predictors && config.sparse) {
      plan_.notes.push_back("the predictors are left out: every neuron is computed for every token");
    }
    if (plan_.activation.has_value()) {
      plan_.notes.push_back(absl::StrCat("the model uses ", Name(*plan_.activation),
                                         ": Isotherm reads that from ", kActivationKey,
                                         ", other programs take a ", config.architecture_name,
                                         " file for a ", Name(DenseActivation(config.architecture)),
                                         " one"));
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
  const bool to_powerinfer_, transpose_;
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
