#include "gpu_worker/host/owned_neurons.h"

#include "absl/strings/str_cat.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"

namespace isotherm::gpu {

absl::StatusOr<std::unique_ptr<OwnedNeurons>> OwnedNeurons::Load(const ModelFile& model) {
  const BundleLayout& layout = model.bundle_layout();
  std::unique_ptr<OwnedNeurons> store(new OwnedNeurons(layout));
  for (int64_t layer = 0; layer < layout.num_layers; ++layer) {
    AlignedBytes bytes(static_cast<size_t>(layout.layer_bytes()));
    if (bytes.data() == nullptr) {
      return WithExitCode(
          absl::ResourceExhaustedError(absl::StrCat(
              "the model's neurons need ", FormatBytes(layout.layer_bytes() * layout.num_layers),
              " of memory; free some or use a smaller model")),
          ExitCode::kShortage);
    }
    ISOTHERM_RETURN_IF_ERROR(model.PackBundles(layer, 0, layout.num_neurons, bytes.span()));
    store->layers_.push_back(std::move(bytes));
  }
  return store;
}

BundleView OwnedNeurons::Layer(int64_t layer) const {
  return {.dtype = layout_.dtype,
          .rows = layout_.rows,
          .model_dim = layout_.model_dim,
          .row_bytes = layout_.row_bytes,
          .bundle_bytes = layout_.bundle_bytes,
          .data = layers_[static_cast<size_t>(layer)].data(),
          .num_neurons = layout_.num_neurons};
}

}  // namespace isotherm::gpu
