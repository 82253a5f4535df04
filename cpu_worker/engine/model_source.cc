#include "cpu_worker/engine/model_source.h"

#include <span>
#include <utility>
#include <vector>

#include "common/base/status_macros.h"

namespace isotherm::cpu {

absl::StatusOr<BundleSource> SourceOf(std::shared_ptr<const ModelFile> model) {
  const BundleLayout& layout = model->bundle_layout();
  BundleSource source;
  source.shape = {.dtype = layout.dtype,
                  .rows = layout.rows,
                  .model_dim = layout.model_dim,
                  .num_neurons = layout.num_neurons,
                  .num_layers = layout.num_layers,
                  .bundle_bytes = layout.bundle_bytes};
  source.rule.activation = model->config().activation;
  source.rule.activate_up = model->config().activate_up;
  for (int64_t layer = 0; model->config().ffn_bias && layer < layout.num_layers; ++layer) {
    ISOTHERM_ASSIGN_OR_RETURN(std::vector<float> bias,
                              model->ReadVector(ModelFile::LayerBias(layer, "ffn_up")));
    source.rule.up_bias.push_back(std::move(bias));
  }
  if (const BundleFile* bundles = model->bundle_file(); bundles != nullptr) {
    source.file = {.path = model->gguf().path(),
                   .fd = model->gguf().fd(),
                   .identity = model->gguf().identity(),
                   .layer_offsets = bundles->layer_offsets};
  }
  source.pack = [model = std::move(model), bundle_bytes = layout.bundle_bytes](
                    int64_t layer, int64_t first, int64_t count, std::byte* out) {
    return model->PackBundles(layer, first, count,
                              std::span<std::byte>(out, static_cast<size_t>(count * bundle_bytes)));
  };
  return source;
}

}  // namespace isotherm::cpu
