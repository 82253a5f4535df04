#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "gpu_worker/engine/cold_side.h"
#include "models/model_file.h"

namespace isotherm::gpu {

// All bundles of a model in this process's own memory: for a gpu_worker that has no cpu_worker, and
// for the one-process baseline that the split is measured against.
class OwnedNeurons final : public NeuronStore {
 public:
  static absl::StatusOr<std::unique_ptr<OwnedNeurons>> Load(const ModelFile& model);
  ~OwnedNeurons() override;
  BundleView Layer(int64_t layer) const override;
  std::span<const std::byte> mapping() const override { return {data_, bytes_}; }

 private:
  explicit OwnedNeurons(const BundleLayout& layout) : layout_(layout) {}
  BundleLayout layout_;
  std::byte* data_ = nullptr;  // an anonymous mapping
  size_t bytes_ = 0;
};

}  // namespace isotherm::gpu
