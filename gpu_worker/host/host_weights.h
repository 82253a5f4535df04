#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "common/kernels/matrix_view.h"
#include "models/model_file.h"

namespace isotherm::gpu {

// Everything of a model but its neurons, in host memory.
struct HostWeights {
  struct Layer {
    std::vector<float> attn_norm, ffn_norm;
    Matrix q, k, v, o;
    Matrix fc1, fc2;  // of sparse models
  };
  Matrix embedding;
  Matrix head;  // empty when tied to the embedding
  std::vector<float> output_norm;
  std::vector<float> rope_freqs;  // [rope_dims / 2], or empty
  std::vector<Layer> layers;
  int64_t bytes = 0;

  int64_t embedding_bytes() const { return static_cast<int64_t>(embedding.storage.size()); }
  const Matrix& logits_matrix() const { return head.rows > 0 ? head : embedding; }

  // `progress`: share done, 0 to 1.
  static absl::StatusOr<HostWeights> Load(const ModelFile& model,
                                          const std::function<void(double)>& progress);
};

MatrixView View(const Matrix& matrix);

}  // namespace isotherm::gpu
