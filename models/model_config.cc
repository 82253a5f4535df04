#include "models/model_config.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "models/gguf/printable.h"

namespace isotherm {
namespace {

constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxVocab = int64_t{1} << 20;
constexpr int64_t kMaxDim = int64_t{1} << 20;

class ConfigReader {
 public:
  ConfigReader(const GgufFile& file, std::string architecture)
      : file_(file), architecture_(std::move(architecture)) {}

  absl::Status Bad(absl::string_view what) const {
    return WithExitCode(absl::DataLossError(absl::StrCat(file_.path(), ": ", what)),
                        ExitCode::kBadData);
  }
  std::string Key(absl::string_view suffix) const {
    return absl::StrCat(architecture_, ".", suffix);
  }

  absl::StatusOr<int64_t> Int(absl::string_view suffix, int64_t max,
                              std::optional<int64_t> fallback = {}) const {
    const std::string key = Key(suffix);
    if (!file_.Has(key) && fallback.has_value()) return *fallback;
    ISOTHERM_ASSIGN_OR_RETURN(const int64_t value, file_.GetInt(key));
    if (value < 1 || value > max)
      return Bad(absl::StrCat("key ", key, " is ", value, "; 1 to ", max, " wanted"));
    return value;
  }
  absl::StatusOr<float> PositiveFloat(absl::string_view suffix,
                                      std::optional<float> fallback = {}) const {
    const std::string key = Key(suffix);
    if (!file_.Has(key) && fallback.has_value()) return *fallback;
    ISOTHERM_ASSIGN_OR_RETURN(const float value, file_.GetFloat(key));
    if (!std::isfinite(value) || value <= 0) {
      return Bad(absl::StrCat("key ", key, " is ", value, "; a finite number above 0 is wanted"));
    }
    return value;
  }

 private:
  const GgufFile& file_;
  std::string architecture_;
};

}  // namespace

absl::StatusOr<ModelConfig> ReadModelConfig(const GgufFile& file, const ModelOptions& options) {
  if (const std::string type = file.GetString("general.type").value_or("model"); type != "model") {
    return WithExitCode(
        absl::DataLossError(absl::StrCat(file.path(), ": general.type is '", Printable(type),
                                         "': this file is no model by itself")),
        ExitCode::kBadData);
  }
  ISOTHERM_ASSIGN_OR_RETURN(const std::string architecture, file.GetString("general.architecture"));
  const ConfigReader reader(file, architecture);
  if (architecture != "llama") {
    return WithExitCode(absl::UnimplementedError(
                            absl::StrCat(file.path(), ": architecture '", Printable(architecture),
                                         "' is not supported; supported: llama")),
                        ExitCode::kBadData);
  }
  ModelConfig config;
  config.architecture_name = architecture;
  config.name = file.Has("general.name") ? file.GetString("general.name").value_or("") : "";
  ISOTHERM_ASSIGN_OR_RETURN(config.num_layers, reader.Int("block_count", kMaxLayers));
  ISOTHERM_ASSIGN_OR_RETURN(config.model_dim, reader.Int("embedding_length", kMaxDim));
  ISOTHERM_ASSIGN_OR_RETURN(config.ffn_dim, reader.Int("feed_forward_length", kMaxDim));
  ISOTHERM_ASSIGN_OR_RETURN(config.context_length, reader.Int("context_length", int64_t{1} << 24));
  ISOTHERM_ASSIGN_OR_RETURN(config.num_q_heads, reader.Int("attention.head_count", 4096));
  ISOTHERM_ASSIGN_OR_RETURN(config.num_kv_heads,
                            reader.Int("attention.head_count_kv", 4096, config.num_q_heads));
  if (config.num_q_heads % config.num_kv_heads != 0) {
    return reader.Bad(absl::StrCat("head_count ", config.num_q_heads,
                                   " is not a multiple of head_count_kv ", config.num_kv_heads));
  }
  if (!file.Has(reader.Key("attention.key_length")) && config.model_dim % config.num_q_heads != 0) {
    return reader.Bad(absl::StrCat("embedding_length ", config.model_dim,
                                   " is not a multiple of head_count ", config.num_q_heads,
                                   " and there is no key_length"));
  }
  if (file.Has(reader.Key("expert_count"))) {
    ISOTHERM_ASSIGN_OR_RETURN(const int64_t experts, file.GetInt(reader.Key("expert_count")));
    if (experts > 0) {
      return WithExitCode(
          absl::UnimplementedError(absl::StrCat(file.path(), ": a mixture of ", experts,
                                                " experts is not supported; dense and PowerInfer "
                                                "llama models are")),
          ExitCode::kBadData);
    }
  }
  ISOTHERM_ASSIGN_OR_RETURN(config.head_dim, reader.Int("attention.key_length", 4096,
                                                        config.model_dim / config.num_q_heads));
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t value_dim,
                            reader.Int("attention.value_length", 4096, config.head_dim));
  if (value_dim != config.head_dim || config.head_dim % 2 != 0) {
    return reader.Bad(absl::StrCat("key_length ", config.head_dim, " and value_length ", value_dim,
                                   " must be equal and even"));
  }
  ISOTHERM_ASSIGN_OR_RETURN(config.rope_dims,
                            reader.Int("rope.dimension_count", 4096, config.head_dim));
  if (config.rope_dims > config.head_dim || config.rope_dims % 2 != 0) {
    return reader.Bad(absl::StrCat("rope.dimension_count ", config.rope_dims,
                                   " is odd or above the head's ", config.head_dim));
  }
  ISOTHERM_ASSIGN_OR_RETURN(config.norm_eps,
                            reader.PositiveFloat("attention.layer_norm_rms_epsilon"));
  ISOTHERM_ASSIGN_OR_RETURN(config.rope_freq_base,
                            reader.PositiveFloat("rope.freq_base", 10000.0f));
  if (file.Has(reader.Key("rope.scaling.type"))) {
    ISOTHERM_ASSIGN_OR_RETURN(const std::string type,
                              file.GetString(reader.Key("rope.scaling.type")));
    if (type == "linear") {
      ISOTHERM_ASSIGN_OR_RETURN(config.rope_scale,
                                reader.PositiveFloat("rope.scaling.factor", 1.0f));
    } else if (type != "none") {
      return reader.Bad(absl::StrCat("rope scaling '", Printable(type),
                                     "' is not supported; supported: none, linear"));
    }
  } else {
    ISOTHERM_ASSIGN_OR_RETURN(config.rope_scale, reader.PositiveFloat("rope.scale_linear", 1.0f));
  }

  const GgufTensor* embedding = file.FindTensor("token_embd.weight");
  if (embedding == nullptr) return reader.Bad("tensor token_embd.weight is missing");
  config.vocab_size = embedding->rows();
  if (config.vocab_size > kMaxVocab) {
    return reader.Bad(
        absl::StrCat("vocabulary of ", config.vocab_size, " tokens; at most ", kMaxVocab));
  }
  if (file.Has("tokenizer.ggml.tokens")) {
    ISOTHERM_ASSIGN_OR_RETURN(const std::vector<std::string> tokens,
                              file.GetStrings("tokenizer.ggml.tokens"));
    if (static_cast<int64_t>(tokens.size()) != config.vocab_size) {
      return reader.Bad(absl::StrCat("the vocabulary has ", tokens.size(),
                                     " tokens, token_embd.weight ", config.vocab_size, " rows"));
    }
  }
  config.tied_output = file.FindTensor("output.weight") == nullptr;
  for (int64_t l = 0; file.is_powerinfer() && l < config.num_layers && !config.sparse; ++l) {
    config.sparse = file.FindTensor(absl::StrCat("blk.", l, ".fc1.weight")) != nullptr;
  }
  config.activation = file.is_powerinfer() ? Activation::kRelu : Activation::kSilu;
  if (options.activation.has_value()) config.activation = *options.activation;
  if (config.sparse && config.activation != Activation::kRelu) {
    return WithExitCode(absl::InvalidArgumentError(
                            "a sparse model needs the ReLU activation; leave --activation out"),
                        ExitCode::kUsage);
  }
  if (file.Has("powerinfer.sparse_threshold")) {
    ISOTHERM_ASSIGN_OR_RETURN(config.sparse_threshold,
                              file.GetFloat("powerinfer.sparse_threshold"));
  }
  if (!std::isfinite(config.sparse_threshold)) {
    return reader.Bad("powerinfer.sparse_threshold is not finite");
  }
  if (options.sparse_threshold.has_value()) config.sparse_threshold = *options.sparse_threshold;
  if (!std::isfinite(config.sparse_threshold)) {
    return WithExitCode(absl::InvalidArgumentError("the sparse threshold must be a finite number"),
                        ExitCode::kUsage);
  }
  // Nine digits tell any two floats apart.
  config.digest = absl::StrFormat("%s-%s-%.9g", file.header_digest(),
                                  Name(config.activation),
                                  config.sparse_threshold);
  return config;
}

}  // namespace isotherm
