#include "bench/synthetic/weight_recipe.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "bench/synthetic/activity.h"

namespace isotherm::bench {
namespace {

int Nearest(double value) { return static_cast<int>(std::lround(std::log2(value))); }
int AtMost(double value) { return static_cast<int>(std::floor(std::log2(value))); }

// Predictors whose rows are whole blocks give each constant a block of its own, whatever the type,
// so that one geometry is one function in all types.
bool WholeBlocks(const SyntheticOptions& o) { return o.predictor_rows % 32 == 0; }

}  // namespace

WeightRecipe::WeightRecipe(const SyntheticOptions& o) {
  const auto dim = static_cast<double>(o.model_dim);
  const double free = dim - static_cast<double>(kReservedChannels);
  const double level_sigma = std::sqrt(kLevelVariance);
  num_constants = o.family == SyntheticFamily::kFalcon ? 2 : 1;
  const int64_t classes = NumTokenClasses(o);
  basis_size = (o.predictor_rows - classes * (WholeBlocks(o) ? 32 : 1)) / 2;

  embedding_sigma = std::ldexp(level_sigma, kEmbeddingExponent);
  const double constants = static_cast<double>(num_constants) * kConstant * kConstant;
  rms = std::sqrt((constants + free * embedding_sigma * embedding_sigma) / dim);
  const double z_sigma = embedding_sigma / rms;
  // Deviation of what a row of levels times one reads from the normalised input.
  const double reading = level_sigma * std::sqrt(free) * z_sigma;
  query_exponent = Nearest(1 / reading);
  head_exponent = Nearest(0.5 / reading);
  head_constant =
      std::exp2(Nearest(kClassLogit * rms / (kConstant * static_cast<double>(num_constants))));

  // What one half layer may add to a channel.
  const double added =
      embedding_sigma * std::sqrt(kGrowth / (2 * static_cast<double>(o.num_layers)));
  const double written = added / std::ldexp(level_sigma, kWriteExponent);
  value_exponent = AtMost(written / std::sqrt(dim) / reading);

  const double gate_norm = std::sqrt(3 * kBasisVariance * free);
  const double gate_reading = gate_norm * z_sigma;
  double energy = 0;  // of max(0, gate) over a layer, for gates of deviation 1
  for (int64_t rank = 0; rank < o.ffn_dim; ++rank) {
    energy += MeanSquareOfRelu(Probit(DesignedActivity(o, rank)));
  }
  if (o.family == SyntheticFamily::kFalcon) {
    gate_exponent = AtMost(written / std::sqrt(energy) / gate_reading);
  } else {
    gate_exponent = Nearest(1 / gate_reading);
    const double gate_sigma = std::ldexp(gate_reading, gate_exponent);
    up_exponent = AtMost(written / (gate_sigma * std::sqrt(energy)) / reading);
  }
  fc1_exponent = Nearest(1 / (std::sqrt(kBasisVariance * free) * embedding_sigma));
}

int64_t WeightRecipe::ConstantColumn(const SyntheticOptions& o, int64_t token_class) const {
  return 2 * basis_size + token_class * (WholeBlocks(o) ? 32 : 1);
}

absl::Status CheckUnits(const SyntheticOptions& options) {
  const WeightRecipe recipe(options);
  if (recipe.basis_size < 3) {
    return absl::InvalidArgumentError(absl::StrCat("rank is ", options.predictor_rows,
                                                   ", which leaves ", recipe.basis_size,
                                                   " directions; at least 3 wanted: raise --rank"));
  }
  // Levels are exact from 2^-24 on in F16.
  const int smallest = std::min({recipe.value_exponent, recipe.gate_exponent, recipe.up_exponent});
  if (smallest < -20) {
    return absl::InvalidArgumentError(absl::StrCat("weights of 2^", smallest,
                                                   " are too small for 16 bits; at least 2^-20 "
                                                   "wanted: lower --layers, --dim or --ffn"));
  }
  return absl::OkStatus();
}

}  // namespace isotherm::bench
