#include "gpu_worker/host/ops/rms_norm.h"

#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "gpu_worker/host/ops/rms_norm.cc"
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

void RmsNormImpl(const float* x, const float* weight, int64_t n, float eps, float* out) {
  const k::DF d;
  k::VF sum = hn::Zero(d);
  int64_t i = 0;
  for (; i + k::kLanes <= n; i += k::kLanes) {
    const k::VF v = hn::LoadU(d, x + i);
    sum = hn::MulAdd(v, v, sum);
  }
  float squares = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; i < n; ++i) squares += x[i] * x[i];
  const float factor = 1.0f / std::sqrt(squares / static_cast<float>(n) + eps);
  const k::VF scale = hn::Set(d, factor);
  for (i = 0; i + k::kLanes <= n; i += k::kLanes) {
    hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, x + i), scale), hn::LoadU(d, weight + i)), d, out + i);
  }
  for (; i < n; ++i) out[i] = x[i] * factor * weight[i];
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace isotherm::gpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace isotherm::gpu {

HWY_EXPORT(RmsNormImpl);

void RmsNorm(const float* x, const float* weight, int64_t n, float eps, float* out) {
  HWY_DYNAMIC_DISPATCH(RmsNormImpl)(x, weight, n, eps, out);
}

}  // namespace isotherm::gpu
#endif  // HWY_ONCE
