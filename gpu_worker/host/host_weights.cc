#include "gpu_worker/host/host_weights.h"

#include <utility>

#include "common/base/status_macros.h"

namespace isotherm::gpu {

MatrixView View(const Matrix& matrix) {
  return {.dtype = matrix.dtype,
          .rows = matrix.rows,
          .columns = matrix.columns,
          .row_bytes = matrix.row_bytes,
          .data = matrix.data()};
}

absl::StatusOr<HostWeights> HostWeights::Load(const ModelFile& model,
                                              const std::function<void(double)>& progress) {
  HostWeights weights;
  const ModelConfig& config = model.config();
  const auto load = [&](absl::string_view name, Matrix* out) -> absl::Status {
    ISOTHERM_ASSIGN_OR_RETURN(*out, model.ReadMatrix(name));
    weights.bytes += static_cast<int64_t>(out->storage.size());
    return ValidateMatrix(View(*out));
  };
  ISOTHERM_RETURN_IF_ERROR(load("token_embd.weight", &weights.embedding));
  if (!config.tied_output) ISOTHERM_RETURN_IF_ERROR(load("output.weight", &weights.head));
  ISOTHERM_ASSIGN_OR_RETURN(weights.output_norm, model.ReadVector("output_norm.weight"));
  if (model.Has("rope_freqs.weight")) {
    ISOTHERM_ASSIGN_OR_RETURN(weights.rope_freqs, model.ReadVector("rope_freqs.weight"));
  }
  for (int64_t l = 0; l < config.num_layers; ++l) {
    Layer layer;
    const auto name = [l](absl::string_view stem) { return ModelFile::LayerTensor(l, stem); };
    ISOTHERM_ASSIGN_OR_RETURN(layer.attn_norm, model.ReadVector(name("attn_norm")));
    ISOTHERM_ASSIGN_OR_RETURN(layer.ffn_norm, model.ReadVector(name("ffn_norm")));
    ISOTHERM_RETURN_IF_ERROR(load(name("attn_q"), &layer.q));
    ISOTHERM_RETURN_IF_ERROR(load(name("attn_k"), &layer.k));
    ISOTHERM_RETURN_IF_ERROR(load(name("attn_v"), &layer.v));
    ISOTHERM_RETURN_IF_ERROR(load(name("attn_output"), &layer.o));
    if (config.sparse) {
      ISOTHERM_RETURN_IF_ERROR(load(name("fc1"), &layer.fc1));
      ISOTHERM_RETURN_IF_ERROR(load(name("fc2"), &layer.fc2));
    }
    weights.layers.push_back(std::move(layer));
    if (progress) progress(static_cast<double>(l + 1) / static_cast<double>(config.num_layers));
  }
  return weights;
}

}  // namespace isotherm::gpu
