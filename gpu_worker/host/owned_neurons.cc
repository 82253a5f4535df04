#include "gpu_worker/host/owned_neurons.h"

#include <sys/mman.h>

#include "absl/strings/str_cat.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"

namespace isotherm::gpu {

absl::StatusOr<std::unique_ptr<OwnedNeurons>> OwnedNeurons::Load(const ModelFile& model) {
  const BundleLayout& layout = model.bundle_layout();
  std::unique_ptr<OwnedNeurons> store(new OwnedNeurons(layout));
  const int64_t all = layout.layer_bytes() * layout.num_layers;
  void* const data = ::mmap(nullptr, static_cast<size_t>(all), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return WithExitCode(
        absl::ResourceExhaustedError(absl::StrCat("the model's neurons need ", FormatBytes(all),
                                                  " of memory; free some or use a smaller model")),
        ExitCode::kShortage);
  }
  store->data_ = static_cast<std::byte*>(data);
  store->bytes_ = static_cast<size_t>(all);
  for (int64_t layer = 0; layer < layout.num_layers; ++layer) {
    ISOTHERM_RETURN_IF_ERROR(
        model.PackBundles(layer, 0, layout.num_neurons,
                          std::span(store->data_ + layer * layout.layer_bytes(),
                                    static_cast<size_t>(layout.layer_bytes()))));
  }
  return store;
}

OwnedNeurons::~OwnedNeurons() {
  if (data_ != nullptr) ::munmap(data_, bytes_);
}

BundleView OwnedNeurons::Layer(int64_t layer) const {
  return {.dtype = layout_.dtype,
          .rows = layout_.rows,
          .model_dim = layout_.model_dim,
          .row_bytes = layout_.row_bytes,
          .bundle_bytes = layout_.bundle_bytes,
          .data = data_ + layer * layout_.layer_bytes(),
          .num_neurons = layout_.num_neurons};
}

}  // namespace isotherm::gpu
