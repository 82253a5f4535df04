#pragma once

#include <span>
#include <vector>

#include "models/model_config.h"

namespace isotherm::gpu {

struct HostNorm {
  std::vector<float> weight;
  std::vector<float> bias;  // [like weight] of NormKind::kLayer, else empty
};

// out = the model's norm of x [model_dim], rounded to the 16-bit values that products use (BF16 if
// `bf16`, else F16). Any thread.
void NormRounded(const ModelConfig& config, bool bf16, const float* x, const HostNorm& weights,
                 std::span<float> out);

}  // namespace isotherm::gpu
