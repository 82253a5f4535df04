#include "models/inspect/inspect.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "models/gguf/gguf_limits.h"
#include "models/gguf/printable.h"
#include "models/model_file.h"
#include "models/profile/activation_profile.h"
#include "models/quantize/block_codec.h"

namespace isotherm {
namespace {

// `padding_bytes` at the end of each row must be zero.
absl::Status VerifyTensor(const GgufFile& file, const GgufTensor& tensor, int64_t padding_bytes,
                          const std::function<void(int64_t)>& advance) {
  const absl::StatusOr<DType> dtype = DTypeFromGgml(tensor.ggml_type);
  if (!dtype.ok()) {  // known size, not computed with: readable is all that can be said
    advance(tensor.bytes);
    return absl::OkStatus();
  }
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t row_bytes, RowBytes(*dtype, tensor.columns()));
  const int64_t rows_per_read = std::max<int64_t>(1, (int64_t{4} << 20) / row_bytes);
  std::vector<std::byte> bytes(
      static_cast<size_t>(std::min(rows_per_read, tensor.rows()) * row_bytes));
  for (int64_t row = 0; row < tensor.rows(); row += rows_per_read) {
    const int64_t rows = std::min(rows_per_read, tensor.rows() - row);
    ISOTHERM_RETURN_IF_ERROR(file.Read(
        tensor, row * row_bytes, std::span(bytes.data(), static_cast<size_t>(rows * row_bytes))));
    for (int64_t r = 0; r < rows; ++r) {
      const std::byte* const end = bytes.data() + (r + 1) * row_bytes;
      if (std::any_of(end - padding_bytes, end, [](std::byte b) { return b != std::byte{0}; })) {
        return BadDataError(file.path(),
                            absl::StrCat("tensor ", tensor.name, " row ", row + r,
                                         " has other padding than zeros: the file is damaged; "
                                         "convert it again"));
      }
      if (!AllFinite(*dtype, bytes.data() + r * row_bytes, tensor.columns())) {
        return BadDataError(file.path(),
                            absl::StrCat("tensor ", tensor.name, " row ", row + r,
                                         " holds a value that is infinite or no number: the "
                                         "file is damaged; get it again"));
      }
    }
    advance(rows * row_bytes);
  }
  return absl::OkStatus();
}

absl::string_view Spelled(Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return "ReLU";
    case Activation::kSilu:
      return "SiLU";
    case Activation::kGelu:
      return "GELU";
  }
  return Name(activation);
}

// The vocabulary's arrays have an element a token, and every named id is one of its tokens.
absl::Status VerifyTokenizer(const GgufFile& file, int64_t vocab_size) {
  const auto check_count = [&](absl::string_view key, size_t count) {
    if (static_cast<int64_t>(count) == vocab_size) return absl::OkStatus();
    return BadDataError(file.path(), absl::StrCat("key ", key, " has ", count,
                                                  " elements, the vocabulary ", vocab_size));
  };
  if (file.Has("tokenizer.ggml.token_type")) {
    ISOTHERM_ASSIGN_OR_RETURN(const std::vector<int32_t> types,
                              file.GetInts("tokenizer.ggml.token_type"));
    ISOTHERM_RETURN_IF_ERROR(check_count("tokenizer.ggml.token_type", types.size()));
  }
  if (file.Has("tokenizer.ggml.scores")) {
    ISOTHERM_ASSIGN_OR_RETURN(const std::vector<float> scores,
                              file.GetFloats("tokenizer.ggml.scores"));
    ISOTHERM_RETURN_IF_ERROR(check_count("tokenizer.ggml.scores", scores.size()));
  }
  for (const char* name : {"bos", "eos", "eot", "unknown", "padding"}) {
    const std::string key = absl::StrCat("tokenizer.ggml.", name, "_token_id");
    if (!file.Has(key)) continue;
    ISOTHERM_ASSIGN_OR_RETURN(const int64_t id, file.GetInt(key));
    if (id >= vocab_size) {
      return BadDataError(
          file.path(),
          absl::StrCat("key ", key, " is ", id, ", the vocabulary has ", vocab_size, " tokens"));
    }
  }
  return absl::OkStatus();
}

absl::Status VerifyProfile(const std::string& path, const ModelConfig& config) {
  const std::string profile_path = ProfilePathFor(path);
  if (!std::filesystem::exists(profile_path)) return absl::OkStatus();
  ISOTHERM_ASSIGN_OR_RETURN(const std::vector<ActivationProfile> profiles,
                            ReadActivationProfiles(profile_path));
  for (const ActivationProfile& profile : profiles) {
    ISOTHERM_RETURN_IF_ERROR(CheckProfileFits(profile, config.num_layers, config.ffn_dim));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelSummary> Inspect(const std::string& path, const ModelOptions& options) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<ModelFile> model, ModelFile::Open(path, options));
  const GgufFile& file = model->gguf();
  const ModelConfig& config = model->config();
  const BundleLayout& layout = model->bundle_layout();
  ModelSummary summary{.config = config,
                       .path = path,
                       .file_bytes = file.file_bytes(),
                       .powerinfer = file.is_powerinfer(),
                       .num_tensors = static_cast<int64_t>(file.tensors().size())};
  std::map<std::string, int> types;
  for (const GgufTensor& tensor : file.tensors()) {
    ++types[FindGgmlType(tensor.ggml_type)->name];
    summary.parameters += tensor.rows() * tensor.columns();
    if (absl::StrContains(tensor.name, ".ffn_bundle.")) {  // padding holds no weights
      summary.parameters -= tensor.rows() * (tensor.columns() - layout.rows * layout.model_dim);
      continue;
    }
    const bool neurons =
        absl::EndsWith(tensor.name, ".weight") &&
        (absl::StrContains(tensor.name, ".ffn_gate.") ||
         absl::StrContains(tensor.name, ".ffn_up.") || absl::StrContains(tensor.name, ".ffn_down"));
    if (!neurons) summary.dense_bytes += tensor.bytes;
  }
  summary.weight_types = absl::StrJoin(types, ", ", absl::PairFormatter(" "));
  summary.ffn_type = std::string(Name(layout.dtype));
  summary.bundle_ordered = model->bundle_file() != nullptr;
  summary.ffn_bytes = layout.layer_bytes() * layout.num_layers;
  summary.kv_bytes_per_token = 2 * 2 * config.num_layers * config.num_kv_heads * config.head_dim;
  summary.repacked = model->repacked();
  if (file.Has("tokenizer.ggml.model")) {
    ISOTHERM_ASSIGN_OR_RETURN(summary.tokenizer, file.GetString("tokenizer.ggml.model"));
    if (file.Has("tokenizer.ggml.pre")) {
      ISOTHERM_ASSIGN_OR_RETURN(const std::string pre, file.GetString("tokenizer.ggml.pre"));
      absl::StrAppend(&summary.tokenizer, " / ", pre);
    }
    summary.tokenizer = Printable(summary.tokenizer);
    absl::StrAppend(&summary.tokenizer, ", ", config.vocab_size, " tokens");
  }
  summary.chat_template = file.Has("tokenizer.chat_template");
  const std::string profile_path = ProfilePathFor(path);
  if (std::filesystem::exists(profile_path)) {
    ISOTHERM_ASSIGN_OR_RETURN(const std::vector<ActivationProfile> profiles,
                              ReadActivationProfiles(profile_path));
    for (const ActivationProfile& profile : profiles)
      summary.profiles.push_back(Printable(profile.name));
  }
  return summary;
}

std::string ToText(const ModelSummary& summary) {
  const ModelConfig& config = summary.config;
  std::string out;
  const auto line = [&out](absl::string_view name, const std::string& value) {
    if (!value.empty()) absl::StrAppendFormat(&out, "%-16s %s\n", name, value);
  };
  line("file", summary.path);
  line("name", Printable(config.name));
  line("architecture",
       absl::StrCat(config.architecture_name, summary.powerinfer ? " (PowerInfer file)" : "", ", ",
                    config.num_layers, " layers, width ", config.model_dim, ", ", config.ffn_dim,
                    " neurons a layer, ", config.num_q_heads, " heads, ", config.num_kv_heads,
                    " KV heads"));
  line("parameters", absl::StrFormat("%.1f M", static_cast<double>(summary.parameters) / 1e6));
  line("weights", summary.weight_types);
  line("activation",
       absl::StrCat(Spelled(config.activation), config.activate_up ? ", on gate and up"
                                                : config.gated     ? ""
                                                                   : ", no gate"));
  line("sparse", config.sparse
                     ? absl::StrCat("yes, with predictors; threshold ", config.sparse_threshold)
                     : "no: every neuron is computed for every token");
  line("context", absl::StrCat(config.context_length, " tokens"));
  line("tokenizer", summary.tokenizer);
  line("chat template", summary.chat_template ? "in the file" : "none");
  line("memory", absl::StrCat("neurons ", FormatBytes(summary.ffn_bytes), " (", summary.ffn_type,
                              "), the rest ", FormatBytes(summary.dense_bytes), ", KV ",
                              FormatBytes(summary.kv_bytes_per_token), " a token"));
  line("neurons",
       summary.bundle_ordered ? "in bundle order: workers map the file, nothing is copied" : "");
  line("profiles", absl::StrJoin(summary.profiles, ", "));
  line("note", summary.repacked);
  return out;
}

std::string ToJson(const ModelSummary& summary) {
  const ModelConfig& config = summary.config;
  nlohmann::ordered_json json;
  json["path"] = summary.path;
  json["name"] = config.name;
  json["architecture"] = config.architecture_name;
  json["powerinfer"] = summary.powerinfer;
  json["sparse"] = config.sparse;
  json["sparse_threshold"] = config.sparse_threshold;
  json["activation"] = std::string(Name(config.activation));
  json["parameters"] = summary.parameters;
  json["weight_types"] = summary.weight_types;
  json["num_layers"] = config.num_layers;
  json["model_dim"] = config.model_dim;
  json["ffn_dim"] = config.ffn_dim;
  json["num_q_heads"] = config.num_q_heads;
  json["num_kv_heads"] = config.num_kv_heads;
  json["context_length"] = config.context_length;
  json["vocab_size"] = config.vocab_size;
  json["tokenizer"] = summary.tokenizer;
  json["chat_template"] = summary.chat_template;
  json["file_bytes"] = summary.file_bytes;
  json["bundle_ordered"] = summary.bundle_ordered;
  json["ffn_bytes"] = summary.ffn_bytes;
  json["ffn_type"] = summary.ffn_type;
  json["dense_bytes"] = summary.dense_bytes;
  json["kv_bytes_per_token"] = summary.kv_bytes_per_token;
  json["profiles"] = summary.profiles;
  json["repacked"] = summary.repacked;
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

absl::Status Verify(const std::string& path,
                    const std::function<void(int64_t, int64_t)>& progress) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<ModelFile> model, ModelFile::Open(path));
  const GgufFile& file = model->gguf();
  int64_t total = 0, done = 0;
  for (const GgufTensor& tensor : file.tensors()) total += tensor.bytes;
  const BundleLayout& layout = model->bundle_layout();
  for (const GgufTensor& tensor : file.tensors()) {
    const bool bundles = absl::EndsWith(tensor.name, ".ffn_bundle.weight");
    const int64_t padding = bundles ? layout.bundle_bytes - layout.rows * layout.row_bytes : 0;
    ISOTHERM_RETURN_IF_ERROR(VerifyTensor(file, tensor, padding, [&](int64_t bytes) {
      done += bytes;
      if (progress) progress(done, total);
    }));
  }
  ISOTHERM_RETURN_IF_ERROR(VerifyTokenizer(file, model->config().vocab_size));
  ISOTHERM_RETURN_IF_ERROR(VerifyProfile(path, model->config()));
  std::vector<std::byte> bundle(static_cast<size_t>(layout.bundle_bytes));
  for (int64_t layer = 0; layer < layout.num_layers; ++layer) {
    ISOTHERM_RETURN_IF_ERROR(model->PackBundles(layer, layout.num_neurons - 1, 1, bundle));
  }
  return absl::OkStatus();
}

}  // namespace isotherm
