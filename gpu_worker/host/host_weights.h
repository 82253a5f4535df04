#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "common/kernels/matrix_view.h"
#include "gpu_worker/host/norm.h"
#include "models/model_file.h"

namespace isotherm::gpu {

// Everything of a model but its neurons, in host memory. Biases are empty in models without.
struct HostWeights {
  struct Layer {
    HostNorm attention_norm, ffn_norm;
    std::vector<Matrix> qkv;  // attn_q, attn_k and attn_v, or the one attn_qkv
    MatrixView q, k, v;       // into qkv
    Matrix o;
    std::vector<float> q_bias, k_bias, v_bias, o_bias;
    Matrix fc1, fc2;               // of sparse models
    std::vector<float> up_bias;    // [ffn_dim]
    std::vector<float> down_bias;  // [model_dim]
  };
  Matrix embedding;
  Matrix positions;  // of models that learn them
  Matrix head;       // empty when tied to the embedding
  HostNorm output_norm;
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
// Rows [first, first + count) of it.
MatrixView Rows(const Matrix& matrix, int64_t first, int64_t count);

}  // namespace isotherm::gpu
