#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/tensor/activation.h"
#include "models/gguf/gguf_file.h"

namespace isotherm {

enum class Architecture { kLlama };

// What a user may override.
struct ModelOptions {
  std::optional<Activation> activation;
  std::optional<float> sparse_threshold;
};

// Hyperparameters of a model file, checked.
struct ModelConfig {
  Architecture architecture = Architecture::kLlama;
  std::string architecture_name;
  std::string name;
  std::string digest;  // equal for workers that opened the same file with the same options
  Activation activation = Activation::kSilu;
  bool sparse = false;         // has predictors
  float sparse_threshold = 0;  // a neuron with a lower score is skipped
  int64_t num_layers = 0;
  int64_t model_dim = 0;
  int64_t ffn_dim = 0;  // neurons of a layer
  int64_t num_q_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab_size = 0;
  int64_t context_length = 0;
  int64_t rope_dims = 0;
  float rope_freq_base = 10000;
  float rope_scale = 1;  // positions are divided by it
  float rms_eps = 1e-5f;
  bool tied_output = false;  // logits come from token_embd
};

// DataLoss (exit code 65) names the key or tensor at fault; Unimplemented the architectures
// supported.
absl::StatusOr<ModelConfig> ReadModelConfig(const GgufFile& file, const ModelOptions& options = {});

}  // namespace isotherm
