#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/tensor/dtype.h"

namespace isotherm::bench {

// kLlama: gate, up and down row a neuron, RMSNorm. kFalcon: up and down row, LayerNorm, attention
// and neurons side by side, the predictor on the layer's input.
enum class SyntheticFamily { kLlama, kFalcon };

// A model of random weights whose neurons fire as often as designed.
struct SyntheticOptions {
  std::string name = "synthetic";
  SyntheticFamily family = SyntheticFamily::kLlama;
  int64_t num_layers = 4;
  int64_t model_dim = 256;
  int64_t ffn_dim = 1024;
  int64_t num_q_heads = 4;
  int64_t num_kv_heads = 4;
  int64_t vocab_size = 512;
  int64_t context_length = 4096;
  int64_t predictor_rows = 127;  // of fc1
  DType dtype = DType::kF16;     // of every matrix: F16, BF16, Q8_0 or Q4_0

  // With u the rank share of a neuron (0: fires most), p(u) = mean_activity (skew + 1) (1 -
  // u)^skew.
  double mean_activity = 0.30;
  double skew = 1.863;

  // Above 0: the vocabulary's upper half is a second class of tokens, for which this share of each
  // layer's neurons has its ranks permuted among themselves.
  double drift = 0;
  uint64_t drift_seed = 2;

  uint64_t seed = 1;
  bool arena = false;  // bundle-ordered (ffn_bundle) instead of gate, up and down apart
};

// "llama-7b", "llama-13b" or "falcon-40b"; InvalidArgument names them.
absl::StatusOr<SyntheticOptions> SyntheticPreset(absl::string_view name);

// The first fault, with got, wanted and remedy.
absl::Status Validate(const SyntheticOptions& options);

}  // namespace isotherm::bench
