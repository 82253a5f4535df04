#include "gpu_worker/host/norm.h"

#include "common/kernels/convert.h"
#include "gpu_worker/host/ops/layer_norm.h"
#include "gpu_worker/host/ops/rms_norm.h"

namespace isotherm::gpu {

void NormRounded(const ModelConfig& config, bool bf16, const float* x, const HostNorm& weights,
                 std::span<float> out) {
  switch (config.norm) {
    case NormKind::kRms:
      RmsNorm(x, weights.weight.data(), config.model_dim, config.norm_eps, out.data());
      break;
    case NormKind::kLayer:
      LayerNorm(x, weights.weight.data(), weights.bias.data(), config.model_dim, config.norm_eps,
                out.data());
      break;
  }
  bf16 ? RoundToBf16(out) : RoundToF16(out);
}

}  // namespace isotherm::gpu
