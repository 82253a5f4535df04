#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu_worker/engine/cold_side.h"
#include "models/model_file.h"

namespace isotherm::gpu {

// All bundles of a model in this process's own memory: for a gpu_worker that has no cpu_worker, and
// for the one-process baseline that the split is measured against.
class OwnedNeurons final : public NeuronStore {
 public:
  static absl::StatusOr<std::unique_ptr<OwnedNeurons>> Load(const ModelFile& model);
  BundleView Layer(int64_t layer) const override;

 private:
  explicit OwnedNeurons(const BundleLayout& layout) : layout_(layout) {}
  BundleLayout layout_;
  std::vector<AlignedBytes> layers_;
};

}  // namespace isotherm::gpu
