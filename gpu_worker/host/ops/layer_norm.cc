#include "gpu_worker/host/ops/layer_norm.h"

#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "gpu_worker/host/ops/layer_norm.cc"
#include "hwy/foreach_target.h"  // recompiles the namespace below for every target
// After foreach_target.
#include "common/kernels/decode-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::gpu {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
namespace k = isotherm::kernels_internal::HWY_NAMESPACE;

// Two passes: the variance as a mean of squares less a square would lose all when the mean is
// large.
void LayerNormImpl(const float* x, const float* weight, const float* bias, int64_t n, float eps,
                   float* out) {
  const k::DF d;
  k::VF lanes = hn::Zero(d);
  int64_t i = 0;
  for (; i + k::kLanes <= n; i += k::kLanes) lanes = hn::Add(lanes, hn::LoadU(d, x + i));
  float sum = hn::GetLane(hn::SumOfLanes(d, lanes));
  for (; i < n; ++i) sum += x[i];
  const float mean = sum / static_cast<float>(n);

  const k::VF means = hn::Set(d, mean);
  lanes = hn::Zero(d);
  for (i = 0; i + k::kLanes <= n; i += k::kLanes) {
    const k::VF v = hn::Sub(hn::LoadU(d, x + i), means);
    lanes = hn::MulAdd(v, v, lanes);
  }
  float squares = hn::GetLane(hn::SumOfLanes(d, lanes));
  for (; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const float factor = 1.0f / std::sqrt(squares / static_cast<float>(n) + eps);

  const k::VF scale = hn::Set(d, factor);
  for (i = 0; i + k::kLanes <= n; i += k::kLanes) {
    const k::VF v = hn::Mul(hn::Sub(hn::LoadU(d, x + i), means), scale);
    hn::StoreU(hn::MulAdd(v, hn::LoadU(d, weight + i), hn::LoadU(d, bias + i)), d, out + i);
  }
  for (; i < n; ++i) out[i] = (x[i] - mean) * factor * weight[i] + bias[i];
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace isotherm::gpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace isotherm::gpu {

HWY_EXPORT(LayerNormImpl);

void LayerNorm(const float* x, const float* weight, const float* bias, int64_t n, float eps,
               float* out) {
  HWY_DYNAMIC_DISPATCH(LayerNormImpl)(x, weight, bias, n, eps, out);
}

}  // namespace isotherm::gpu
#endif  // HWY_ONCE
