#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "models/bundle_file.h"
#include "models/bundle_layout.h"
#include "models/gguf/gguf_file.h"
#include "models/matrix.h"
#include "models/model_config.h"

namespace isotherm {

// A model on disk: every tensor present with the right shape. Reads matrices in a type that
// Isotherm computes with (F32 F16 BF16 Q8_0 Q4_0; others are repacked to Q8_0) and packs neurons
// into bundles. Immutable after Open(); any thread.
class ModelFile {
 public:
  // DataLoss names a tensor that is missing or misshaped.
  static absl::StatusOr<std::unique_ptr<ModelFile>> Open(const std::string& path,
                                                         const ModelOptions& options = {});

  const ModelConfig& config() const { return config_; }
  const GgufFile& gguf() const { return *file_; }
  const BundleLayout& bundle_layout() const { return layout_; }
  // Where the bundles lie in the file; null unless it is bundle-ordered.
  const BundleFile* bundle_file() const { return bundles_ ? &*bundles_ : nullptr; }
  // In words, what is not computed as stored; empty when all is.
  const std::string& repacked() const { return repacked_; }

  // "blk.3.attn_q.weight"
  static std::string LayerTensor(int64_t layer, absl::string_view stem);
  // "blk.3.attn_q.bias"
  static std::string LayerBias(int64_t layer, absl::string_view stem);
  // "ffn_down_t" of a PowerInfer file, whose row n is neuron n's, else "ffn_down".
  absl::string_view down_tensor() const { return transposed_down_ ? "ffn_down_t" : "ffn_down"; }

  bool Has(absl::string_view tensor) const { return file_->FindTensor(tensor) != nullptr; }
  // Whether the model computes with it; any other tensor is harmless.
  bool Uses(absl::string_view tensor) const { return used_.contains(tensor); }
  // DataLoss for a missing tensor, an infinite or NaN weight, and a file that became shorter.
  absl::StatusOr<Matrix> ReadMatrix(absl::string_view tensor) const;
  // A tensor of one row, as F32. InvalidArgument for one of more rows.
  absl::StatusOr<std::vector<float>> ReadVector(absl::string_view tensor) const;

  // Writes the bundles of neurons first .. first + count of a layer to `out` (count *
  // bundle_bytes), padding zeroed. A dense file's down matrix is transposed, and requantised when
  // it is quantised.
  absl::Status PackBundles(int64_t layer, int64_t first, int64_t count,
                           std::span<std::byte> out) const;

 private:
  ModelFile() = default;
  absl::Status CheckTensors();
  absl::Status CheckLayer(int64_t layer);
  absl::Status ChooseLayout();
  absl::Status ExpectNorm(const std::string& stem);
  // Stems of a bundle's rows before the down row.
  std::span<const char* const> NeuronRows() const;
  absl::StatusOr<const GgufTensor*> Expect(const std::string& name, int64_t columns, int64_t rows);

  std::unique_ptr<GgufFile> file_;
  ModelConfig config_;
  BundleLayout layout_;
  std::optional<BundleFile> bundles_;
  bool transposed_down_ = false;                 // see down_tensor()
  absl::flat_hash_set<absl::string_view> used_;  // names of the tensors that are computed with
  std::vector<DType> neuron_types_;              // as stored, of gate, up and down, all layers
  std::string repacked_;
};

}  // namespace isotherm
