#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/synthetic/synthetic_options.h"

namespace isotherm::bench {

// What the rows of a tensor are.
enum class TensorKind {
  kOnes,   // norm weights
  kZeros,  // norm biases
  kEmbedding,
  kHead,
  kQuery,
  kKey,
  kValue,
  kQkv,    // falcon: queries, keys, values
  kWrite,  // attn_output: its rows write the residual's channels
  kGate,   // decides; falcon: the up row
  kUp,     // llama
  kDown,
  kBundle,  // gate, up, down of a neuron
  kFc1,
  kFc2,
};

struct SyntheticTensor {
  std::string name;
  TensorKind kind;
  int64_t layer = 0;
  int64_t columns = 0;
  int64_t rows = 0;
  DType dtype = DType::kF32;
  int64_t row_bytes = 0;
};

// All tensors in file order. `options` are valid.
std::vector<SyntheticTensor> ListTensors(const SyntheticOptions& options);

}  // namespace isotherm::bench
