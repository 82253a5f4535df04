#include "models/model_config.h"

#include <array>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/check.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "models/gguf/printable.h"

namespace isotherm {
namespace {

constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxVocab = int64_t{1} << 20;
constexpr int64_t kMaxDim = int64_t{1} << 20;

// What an architecture's name says of a model.
struct ArchitectureRules {
  Architecture architecture;
  const char* name;
  NormKind norm;
  std::optional<float> default_eps;  // absent: the file must have it
  Activation dense_activation;       // of a plain GGUF file that nobody said more of
};
constexpr std::array<ArchitectureRules, 4> kArchitectures = {{
    {Architecture::kLlama, "llama", NormKind::kRms, {}, Activation::kSilu},
    {Architecture::kBamboo, "bamboo", NormKind::kRms, {}, Activation::kRelu},
    {Architecture::kFalcon, "falcon", NormKind::kLayer, {}, Activation::kGelu},
    // Its converter leaves the epsilon out: every OPT model has this one.
    {Architecture::kOpt, "opt", NormKind::kLayer, 1e-5f, Activation::kRelu},
}};

class ConfigReader {
 public:
  ConfigReader(const GgufFile& file, const ModelOptions& options)
      : file_(file), options_(options) {}

  absl::StatusOr<ModelConfig> Read();

 private:
  absl::Status Bad(absl::string_view what) const {
    return WithExitCode(absl::DataLossError(absl::StrCat(file_.path(), ": ", what)),
                        ExitCode::kBadData);
  }
  absl::Status Unsupported(absl::string_view what) const {
    return WithExitCode(absl::UnimplementedError(absl::StrCat(file_.path(), ": ", what)),
                        ExitCode::kBadData);
  }
  static absl::Status BadOption(absl::string_view what) {
    return WithExitCode(absl::InvalidArgumentError(what), ExitCode::kUsage);
  }
  std::string Key(absl::string_view suffix) const {
    return absl::StrCat(config_.architecture_name, ".", suffix);
  }
  bool HasTensor(int64_t layer, absl::string_view stem) const {
    return file_.FindTensor(absl::StrCat("blk.", layer, ".", stem, ".weight")) != nullptr;
  }
  absl::StatusOr<int64_t> Int(absl::string_view suffix, int64_t max,
                              std::optional<int64_t> fallback = {}) const;
  absl::StatusOr<float> PositiveFloat(absl::string_view suffix,
                                      std::optional<float> fallback = {}) const;

  absl::Status ReadArchitecture();
  absl::Status ReadShape();
  absl::Status ReadHeads();
  absl::Status ReadPositions();
  absl::Status ReadVocabulary();
  absl::Status ReadSparsity();
  void DescribeGraph();

  const GgufFile& file_;
  const ModelOptions& options_;
  const ArchitectureRules* rules_ = nullptr;
  ModelConfig config_;
};

absl::StatusOr<int64_t> ConfigReader::Int(absl::string_view suffix, int64_t max,
                                          std::optional<int64_t> fallback) const {
  const std::string key = Key(suffix);
  if (!file_.Has(key) && fallback.has_value()) return *fallback;
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t value, file_.GetInt(key));
  if (value < 1 || value > max)
    return Bad(absl::StrCat("key ", key, " is ", value, "; 1 to ", max, " wanted"));
  return value;
}

absl::StatusOr<float> ConfigReader::PositiveFloat(absl::string_view suffix,
                                                  std::optional<float> fallback) const {
  const std::string key = Key(suffix);
  if (!file_.Has(key) && fallback.has_value()) return *fallback;
  ISOTHERM_ASSIGN_OR_RETURN(const float value, file_.GetFloat(key));
  if (!std::isfinite(value) || value <= 0) {
    return Bad(absl::StrCat("key ", key, " is ", value, "; a finite number above 0 is wanted"));
  }
  return value;
}

absl::Status ConfigReader::ReadArchitecture() {
  if (const std::string type = file_.GetString("general.type").value_or("model"); type != "model") {
    return Bad(
        absl::StrCat("general.type is '", Printable(type), "': this file is no model by itself"));
  }
  ISOTHERM_ASSIGN_OR_RETURN(config_.architecture_name, file_.GetString("general.architecture"));
  std::string names;
  for (const ArchitectureRules& rules : kArchitectures) {
    if (config_.architecture_name == rules.name) rules_ = &rules;
    absl::StrAppend(&names, names.empty() ? "" : ", ", rules.name);
  }
  if (rules_ == nullptr) {
    return Unsupported(absl::StrCat("architecture '", Printable(config_.architecture_name),
                                    "' is not supported; supported: ", names));
  }
  config_.architecture = rules_->architecture;
  config_.name = file_.Has("general.name") ? file_.GetString("general.name").value_or("") : "";
  return absl::OkStatus();
}

absl::Status ConfigReader::ReadShape() {
  ISOTHERM_ASSIGN_OR_RETURN(config_.num_layers, Int("block_count", kMaxLayers));
  ISOTHERM_ASSIGN_OR_RETURN(config_.model_dim, Int("embedding_length", kMaxDim));
  ISOTHERM_ASSIGN_OR_RETURN(config_.ffn_dim, Int("feed_forward_length", kMaxDim));
  ISOTHERM_ASSIGN_OR_RETURN(config_.context_length, Int("context_length", int64_t{1} << 24));
  if (file_.Has(Key("expert_count"))) {
    ISOTHERM_ASSIGN_OR_RETURN(const int64_t experts, file_.GetInt(Key("expert_count")));
    if (experts > 0) {
      return Unsupported(absl::StrCat(
          "a mixture of ", experts, " experts is not supported; dense and PowerInfer models are"));
    }
  }
  const char* const eps = rules_->norm == NormKind::kRms ? "attention.layer_norm_rms_epsilon"
                                                         : "attention.layer_norm_epsilon";
  ISOTHERM_ASSIGN_OR_RETURN(config_.norm_eps, PositiveFloat(eps, rules_->default_eps));
  return absl::OkStatus();
}

absl::Status ConfigReader::ReadHeads() {
  ISOTHERM_ASSIGN_OR_RETURN(config_.num_q_heads, Int("attention.head_count", 4096));
  ISOTHERM_ASSIGN_OR_RETURN(config_.num_kv_heads,
                            Int("attention.head_count_kv", 4096, config_.num_q_heads));
  if (config_.num_q_heads % config_.num_kv_heads != 0) {
    return Bad(absl::StrCat("head_count ", config_.num_q_heads,
                            " is not a multiple of head_count_kv ", config_.num_kv_heads));
  }
  if (!file_.Has(Key("attention.key_length")) && config_.model_dim % config_.num_q_heads != 0) {
    return Bad(absl::StrCat("embedding_length ", config_.model_dim,
                            " is not a multiple of head_count ", config_.num_q_heads,
                            " and there is no key_length"));
  }
  ISOTHERM_ASSIGN_OR_RETURN(
      config_.head_dim, Int("attention.key_length", 4096, config_.model_dim / config_.num_q_heads));
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t value_dim,
                            Int("attention.value_length", 4096, config_.head_dim));
  if (value_dim != config_.head_dim || config_.head_dim % 2 != 0) {
    return Bad(absl::StrCat("key_length ", config_.head_dim, " and value_length ", value_dim,
                            " must be equal and even"));
  }
  return absl::OkStatus();
}

void ConfigReader::DescribeGraph() {
  config_.norm = rules_->norm;
  switch (rules_->architecture) {
    case Architecture::kLlama:
      break;
    case Architecture::kBamboo:
      config_.activate_up = true;
      break;
    case Architecture::kFalcon:
      config_.parallel_attention = true;
      config_.fused_qkv = true;
      config_.rope_neox = true;
      config_.gated = false;
      config_.ffn_norm_tensor = "attn_norm";
      // One layer with a norm of its own for attention: then all have one.
      for (int64_t l = 0; l < config_.num_layers; ++l) {
        if (HasTensor(l, "attn_norm_2")) config_.attention_norm_tensor = "attn_norm_2";
      }
      break;
    case Architecture::kOpt:
      config_.attention_bias = true;
      config_.rotary = false;
      config_.learned_positions = true;
      config_.position_offset = 2;
      config_.gated = false;
      config_.ffn_bias = true;
      break;
  }
}

absl::Status ConfigReader::ReadPositions() {
  if (config_.fused_qkv) {
    // Without the sorting the rows would be taken for other heads'.
    const std::string key = Key("tensor_data_layout");
    ISOTHERM_ASSIGN_OR_RETURN(const std::string layout, file_.GetString(key));
    if (layout != "jploski") {
      return Bad(absl::StrCat("key ", key, " is '", Printable(layout),
                              "'; jploski is wanted: attn_qkv sorted into Q, K and V; convert the "
                              "model again with a newer converter"));
    }
  }
  if (config_.learned_positions) {
    const GgufTensor* table = file_.FindTensor("position_embd.weight");
    if (table == nullptr) return Bad("tensor position_embd.weight is missing");
    // Some converters count the table's rows as the context, some the positions.
    const int64_t rows = table->rows(), offset = config_.position_offset;
    if (rows <= offset ||
        (rows != config_.context_length && rows - offset != config_.context_length)) {
      return Bad(absl::StrCat("tensor position_embd.weight has ", rows, " rows; key ",
                              Key("context_length"), " is ", config_.context_length,
                              ", which wants as many or ", offset, " more, and above ", offset));
    }
    config_.context_length = rows - offset;
  }
  if (!config_.rotary) return absl::OkStatus();
  ISOTHERM_ASSIGN_OR_RETURN(config_.rope_dims, Int("rope.dimension_count", 4096, config_.head_dim));
  if (config_.rope_dims > config_.head_dim || config_.rope_dims % 2 != 0) {
    return Bad(absl::StrCat("rope.dimension_count ", config_.rope_dims,
                            " is odd or above the head's ", config_.head_dim));
  }
  ISOTHERM_ASSIGN_OR_RETURN(config_.rope_freq_base, PositiveFloat("rope.freq_base", 10000.0f));
  if (!file_.Has(Key("rope.scaling.type"))) {
    ISOTHERM_ASSIGN_OR_RETURN(config_.rope_scale, PositiveFloat("rope.scale_linear", 1.0f));
    return absl::OkStatus();
  }
  ISOTHERM_ASSIGN_OR_RETURN(const std::string type, file_.GetString(Key("rope.scaling.type")));
  if (type == "linear") {
    ISOTHERM_ASSIGN_OR_RETURN(config_.rope_scale, PositiveFloat("rope.scaling.factor", 1.0f));
  } else if (type != "none") {
    return Bad(absl::StrCat("rope scaling '", Printable(type),
                            "' is not supported; supported: none, linear"));
  }
  return absl::OkStatus();
}

absl::Status ConfigReader::ReadVocabulary() {
  const GgufTensor* embedding = file_.FindTensor("token_embd.weight");
  if (embedding == nullptr) return Bad("tensor token_embd.weight is missing");
  config_.vocab_size = embedding->rows();
  if (config_.vocab_size > kMaxVocab) {
    return Bad(absl::StrCat("vocabulary of ", config_.vocab_size, " tokens; at most ", kMaxVocab));
  }
  if (file_.Has("tokenizer.ggml.tokens")) {
    ISOTHERM_ASSIGN_OR_RETURN(const std::vector<std::string> tokens,
                              file_.GetStrings("tokenizer.ggml.tokens"));
    if (static_cast<int64_t>(tokens.size()) != config_.vocab_size) {
      return Bad(absl::StrCat("the vocabulary has ", tokens.size(), " tokens, token_embd.weight ",
                              config_.vocab_size, " rows"));
    }
  }
  config_.tied_output = file_.FindTensor("output.weight") == nullptr;
  return absl::OkStatus();
}

absl::Status ConfigReader::ReadSparsity() {
  for (int64_t l = 0; file_.is_powerinfer() && l < config_.num_layers && !config_.sparse; ++l) {
    config_.sparse = HasTensor(l, "fc1");
  }
  const Activation dense = rules_->dense_activation;
  config_.activation = file_.is_powerinfer() ? Activation::kRelu : dense;
  if (!file_.is_powerinfer() && file_.Has(kActivationKey)) {
    ISOTHERM_ASSIGN_OR_RETURN(const std::string name, file_.GetString(kActivationKey));
    if (name != Name(Activation::kRelu) && name != Name(dense)) {
      return Bad(absl::StrCat("key ", kActivationKey, " is '", Printable(name), "'; ", Name(dense),
                              " or relu is wanted"));
    }
    if (name == Name(Activation::kRelu)) config_.activation = Activation::kRelu;
  }
  if (options_.activation.has_value()) config_.activation = *options_.activation;
  if (config_.activation != Activation::kRelu && config_.activation != dense) {
    return BadOption(absl::StrCat(
        "activation ", Name(config_.activation), ": a ", rules_->name, " model uses ", Name(dense),
        dense == Activation::kRelu ? "" : " or relu", "; leave --activation out"));
  }
  if (config_.sparse && config_.activation != Activation::kRelu) {
    return BadOption("a sparse model needs the ReLU activation; leave --activation out");
  }
  if (file_.Has("powerinfer.sparse_threshold")) {
    ISOTHERM_ASSIGN_OR_RETURN(config_.sparse_threshold,
                              file_.GetFloat("powerinfer.sparse_threshold"));
  }
  if (!std::isfinite(config_.sparse_threshold)) {
    return Bad("powerinfer.sparse_threshold is not finite");
  }
  if (options_.sparse_threshold.has_value()) config_.sparse_threshold = *options_.sparse_threshold;
  if (!std::isfinite(config_.sparse_threshold)) {
    return BadOption("the sparse threshold must be a finite number");
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelConfig> ConfigReader::Read() {
  ISOTHERM_RETURN_IF_ERROR(ReadArchitecture());
  ISOTHERM_RETURN_IF_ERROR(ReadShape());
  ISOTHERM_RETURN_IF_ERROR(ReadHeads());
  DescribeGraph();
  ISOTHERM_RETURN_IF_ERROR(ReadPositions());
  ISOTHERM_RETURN_IF_ERROR(ReadVocabulary());
  ISOTHERM_RETURN_IF_ERROR(ReadSparsity());
  // Nine digits tell any two floats apart.
  config_.digest = absl::StrFormat("%s-%s-%.9g", file_.header_digest(), Name(config_.activation),
                                   config_.sparse_threshold);
  return config_;
}

}  // namespace

Activation DenseActivation(Architecture architecture) {
  for (const ArchitectureRules& rules : kArchitectures) {
    if (rules.architecture == architecture) return rules.dense_activation;
  }
  ISOTHERM_CHECK(!"unknown Architecture");
  __builtin_unreachable();
}

absl::StatusOr<ModelConfig> ReadModelConfig(const GgufFile& file, const ModelOptions& options) {
  return ConfigReader(file, options).Read();
}

}  // namespace isotherm
