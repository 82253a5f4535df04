#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/tensor/activation.h"
#include "models/gguf/gguf_file.h"

namespace isotherm {

enum class Architecture { kLlama, kBamboo, kFalcon, kOpt };

// RMS: x / sqrt(mean(x^2) + eps) * weight. Layer: (x - mean) / sqrt(variance + eps) * weight +
// bias, population variance. Every norm of a model is of one kind; a kLayer one has a ".bias"
// tensor beside its ".weight".
enum class NormKind { kRms, kLayer };

// What a user may override.
struct ModelOptions {
  std::optional<Activation> activation;
  std::optional<float> sparse_threshold;
};

// Hyperparameters of a model file, checked, and its graph in plain fields: a backend reads these
// and never asks for the architecture's name.
struct ModelConfig {
  Architecture architecture = Architecture::kLlama;
  std::string architecture_name;
  std::string name;
  std::string digest;          // equal for workers that opened the same file with the same options
  bool sparse = false;         // has predictors
  float sparse_threshold = 0;  // a neuron with a lower score is skipped
  int64_t num_layers = 0;
  int64_t model_dim = 0;
  int64_t ffn_dim = 0;  // neurons of a layer
  int64_t num_q_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab_size = 0;
  int64_t context_length = 0;  // usable positions
  bool tied_output = false;    // logits come from token_embd

  // The graph of a layer, x its input:
  //   parallel_attention false: f = x + attention(norm_a x); x' = f + ffn(norm_f f); predictor on f
  //   parallel_attention true:  x' = x + attention(norm_a x) + ffn(norm_f x);        predictor on x
  bool parallel_attention = false;
  NormKind norm = NormKind::kRms;
  float norm_eps = 1e-5f;
  // Stems of the norms' tensors, as in "blk.3.<stem>.weight"; equal when one norm feeds both.
  std::string attention_norm_tensor = "attn_norm";
  std::string ffn_norm_tensor = "ffn_norm";

  // One tensor attn_qkv, rows all Q, all K, all V; else attn_q, attn_k and attn_v.
  bool fused_qkv = false;
  bool attention_bias = false;  // attn_q, attn_k, attn_v and attn_output have a ".bias"
  bool rotary = true;           // queries and keys are rotated; else rope_dims is 0
  bool rope_neox = false;       // pairs (i, i + rope_dims / 2); else (2i, 2i + 1)
  int64_t rope_dims = 0;
  float rope_freq_base = 10000;
  float rope_scale = 1;  // positions are divided by it
  // Learned positions: row p + position_offset of position_embd is added to the token's embedding.
  bool learned_positions = false;
  int64_t position_offset = 0;

  // How a neuron's value is made of its rows' products with z: see SparseFfnParams.
  bool gated = true;  // a bundle is [gate | up | down], else [up | down]
  Activation activation = Activation::kSilu;
  bool activate_up = false;  // of gated ones: the activation is applied to the up product as well
  // ffn_up.bias [ffn_dim] is part of a neuron's value; the down tensor's bias [model_dim] is added
  // once a layer, by the gpu_worker, whichever neurons are active.
  bool ffn_bias = false;

  int bundle_rows() const { return gated ? 3 : 2; }
};

// What a plain GGUF file of the architecture is computed with unless it or the user says otherwise.
Activation DenseActivation(Architecture architecture);
// Written by `models convert` where the architecture's own activation is not the model's: "relu".
inline constexpr char kActivationKey[] = "isotherm.activation";

// DataLoss (exit code 65) names the key or tensor at fault; Unimplemented the architectures
// supported.
absl::StatusOr<ModelConfig> ReadModelConfig(const GgufFile& file, const ModelOptions& options = {});

}  // namespace isotherm
