#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "bench/synthetic/synthetic_options.h"

namespace isotherm::bench {

// Numbers that shape a synthetic model. The residual of a token is its embedding: normal numbers of
// deviation kEmbeddingSigma, and in channels that no weight writes to the constant kConstant of the
// token's class (falcon: a pair +, -, so that LayerNorm's mean drops out). Attention and neurons
// together add at most kGrowth of its variance over all layers, so that the input of every gate is
// what the embedding makes it.
//
// Channels 0 .. kReservedChannels - 1 hold nothing but the constants: class c's lies at 32 c. So a
// block of a quantised type that has a constant has nothing else, and its scale is the constant.
//
// A gate row is the sum, with signs, of three of k basis rows V of small integers (whose sum is
// zero), and per class a threshold t * |row| * sigma / kConstant on the constant's channel, with
// t = Probit(p). So the gate's input is normal with mean t and deviation 1, up to a factor that is
// the same for all neurons of a row. The predictor has fc1 = [V; -V; e of each class]; fc2 has the
// three signs twice (relu(v) - relu(-v) = v), and the same threshold. Its score is the gate's value
// exactly, in exact arithmetic: both are sums of the same integers and the same rounded threshold
// times powers of two.
inline constexpr int64_t kReservedChannels = 64;
inline constexpr double kConstant = 8;
inline constexpr double kLevelVariance = 13.5;  // of kNormalLevels
inline constexpr double kBasisVariance = 1.5;   // of kBasisLevels
inline constexpr int kEmbeddingExponent = -2;
inline constexpr int kWriteExponent = -12;  // attn_output and down rows
inline constexpr double kGrowth = 1e-3;
// Added to the logits of tokens of the last token's class: what is sampled stays in the class.
inline constexpr double kClassLogit = 32;

// Exponents of two that the levels of each matrix are multiplied with.
struct WeightRecipe {
  explicit WeightRecipe(const SyntheticOptions& options);

  double embedding_sigma = 0;  // of the residual's channels
  double rms = 0;              // of the residual
  int64_t num_constants = 1;   // channels of a class's constant: 1, or 2 (+, -)
  int64_t basis_size = 0;      // k
  int query_exponent = 0;      // queries and keys of deviation 1
  int value_exponent = 0;
  int gate_exponent = 0;  // falcon: of the up row, which decides
  int up_exponent = 0;    // llama
  int fc1_exponent = 0;   // hidden values of deviation 1
  int fc2_exponent = -1;
  int fc1_constant_exponent = -3;  // a constant's hidden value is 1 or 2
  int head_exponent = 0;  // logits of deviation 1/2: sampling at temperature 1 is near even
  double head_constant = 0;

  // Row of fc1, and column of fc2, that carries a class's constant.
  int64_t ConstantColumn(const SyntheticOptions& options, int64_t token_class) const;
};

// InvalidArgument when a row of weights would fall below what the types can hold.
absl::Status CheckUnits(const SyntheticOptions& options);

}  // namespace isotherm::bench
