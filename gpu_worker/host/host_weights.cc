#include "gpu_worker/host/host_weights.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace isotherm::gpu {
namespace {

class Loader {
 public:
  explicit Loader(const ModelFile& model) : model_(model), config_(model.config()) {}

  absl::Status ReadGlobals() {
    ISOTHERM_RETURN_IF_ERROR(Read("token_embd.weight", &weights_.embedding));
    if (!config_.tied_output) ISOTHERM_RETURN_IF_ERROR(Read("output.weight", &weights_.head));
    if (config_.learned_positions) {
      ISOTHERM_RETURN_IF_ERROR(Read("position_embd.weight", &weights_.positions));
    }
    ISOTHERM_RETURN_IF_ERROR(ReadNorm("output_norm", &weights_.output_norm));
    if (config_.rotary && model_.Has("rope_freqs.weight")) {
      ISOTHERM_ASSIGN_OR_RETURN(weights_.rope_freqs, model_.ReadVector("rope_freqs.weight"));
    }
    return absl::OkStatus();
  }

  absl::Status ReadLayer(int64_t l) {
    HostWeights::Layer layer;
    const auto name = [l](absl::string_view stem) { return ModelFile::LayerTensor(l, stem); };
    const auto norm = [l](absl::string_view stem) { return absl::StrCat("blk.", l, ".", stem); };
    ISOTHERM_RETURN_IF_ERROR(ReadNorm(norm(config_.attention_norm_tensor), &layer.attention_norm));
    ISOTHERM_RETURN_IF_ERROR(ReadNorm(norm(config_.ffn_norm_tensor), &layer.ffn_norm));
    ISOTHERM_RETURN_IF_ERROR(config_.fused_qkv ? ReadFusedQkv(l, &layer) : ReadQkv(l, &layer));
    ISOTHERM_RETURN_IF_ERROR(Read(name("attn_output"), &layer.o));
    if (config_.attention_bias) {
      ISOTHERM_RETURN_IF_ERROR(ReadBias(l, "attn_output", &layer.o_bias));
    }
    if (config_.ffn_bias) {
      ISOTHERM_RETURN_IF_ERROR(ReadBias(l, "ffn_up", &layer.up_bias));
      ISOTHERM_RETURN_IF_ERROR(ReadBias(l, model_.down_tensor(), &layer.down_bias));
    }
    if (config_.sparse) {
      ISOTHERM_RETURN_IF_ERROR(Read(name("fc1"), &layer.fc1));
      ISOTHERM_RETURN_IF_ERROR(Read(name("fc2"), &layer.fc2));
    }
    weights_.layers.push_back(std::move(layer));
    return absl::OkStatus();
  }

  HostWeights Take() { return std::move(weights_); }

 private:
  absl::Status Read(const std::string& name, Matrix* out) {
    ISOTHERM_ASSIGN_OR_RETURN(*out, model_.ReadMatrix(name));
    weights_.bytes += static_cast<int64_t>(out->storage.size());
    return ValidateMatrix(View(*out));
  }
  absl::Status ReadBias(int64_t layer, absl::string_view stem, std::vector<float>* out) {
    ISOTHERM_ASSIGN_OR_RETURN(*out, model_.ReadVector(ModelFile::LayerBias(layer, stem)));
    return absl::OkStatus();
  }
  absl::Status ReadNorm(const std::string& stem, HostNorm* out) {
    ISOTHERM_ASSIGN_OR_RETURN(out->weight, model_.ReadVector(absl::StrCat(stem, ".weight")));
    if (config_.norm != NormKind::kLayer) return absl::OkStatus();
    ISOTHERM_ASSIGN_OR_RETURN(out->bias, model_.ReadVector(absl::StrCat(stem, ".bias")));
    return absl::OkStatus();
  }
  // Views stay good when the layer moves: they point into the matrices' own memory.
  absl::Status ReadQkv(int64_t l, HostWeights::Layer* layer) {
    struct Part {
      const char* stem;
      MatrixView* view;
      std::vector<float>* bias;
    };
    for (const Part& part :
         {Part{"attn_q", &layer->q, &layer->q_bias}, Part{"attn_k", &layer->k, &layer->k_bias},
          Part{"attn_v", &layer->v, &layer->v_bias}}) {
      ISOTHERM_RETURN_IF_ERROR(
          Read(ModelFile::LayerTensor(l, part.stem), &layer->qkv.emplace_back()));
      *part.view = View(layer->qkv.back());
      if (config_.attention_bias) ISOTHERM_RETURN_IF_ERROR(ReadBias(l, part.stem, part.bias));
    }
    return absl::OkStatus();
  }
  absl::Status ReadFusedQkv(int64_t l, HostWeights::Layer* layer) {
    const int64_t q_dim = config_.num_q_heads * config_.head_dim;
    const int64_t kv_dim = config_.num_kv_heads * config_.head_dim;
    ISOTHERM_RETURN_IF_ERROR(
        Read(ModelFile::LayerTensor(l, "attn_qkv"), &layer->qkv.emplace_back()));
    const Matrix& qkv = layer->qkv.front();
    layer->q = Rows(qkv, 0, q_dim);
    layer->k = Rows(qkv, q_dim, kv_dim);
    layer->v = Rows(qkv, q_dim + kv_dim, kv_dim);
    if (!config_.attention_bias) return absl::OkStatus();
    std::vector<float> bias;
    ISOTHERM_RETURN_IF_ERROR(ReadBias(l, "attn_qkv", &bias));
    const auto k = bias.begin() + q_dim, v = k + kv_dim;
    layer->q_bias.assign(bias.begin(), k);
    layer->k_bias.assign(k, v);
    layer->v_bias.assign(v, bias.end());
    return absl::OkStatus();
  }

  const ModelFile& model_;
  const ModelConfig& config_;
  HostWeights weights_;
};

}  // namespace

MatrixView View(const Matrix& matrix) { return Rows(matrix, 0, matrix.rows); }

MatrixView Rows(const Matrix& matrix, int64_t first, int64_t count) {
  return {.dtype = matrix.dtype,
          .rows = count,
          .columns = matrix.columns,
          .row_bytes = matrix.row_bytes,
          .data = matrix.data() + first * matrix.row_bytes};
}

absl::StatusOr<HostWeights> HostWeights::Load(const ModelFile& model,
                                              const std::function<void(double)>& progress) {
  Loader loader(model);
  ISOTHERM_RETURN_IF_ERROR(loader.ReadGlobals());
  const int64_t num_layers = model.config().num_layers;
  for (int64_t l = 0; l < num_layers; ++l) {
    ISOTHERM_RETURN_IF_ERROR(loader.ReadLayer(l));
    if (progress) progress(static_cast<double>(l + 1) / static_cast<double>(num_layers));
  }
  return loader.Take();
}

}  // namespace isotherm::gpu
