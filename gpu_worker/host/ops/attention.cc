#include "gpu_worker/host/ops/attention.h"

#include <cmath>

#include "gpu_worker/device.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "gpu_worker/host/ops/attention.cc"
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

template <DType kType>
float DotHalf(const float* q, const uint16_t* row, int64_t n) {
  const k::DF d;
  const auto* bytes = reinterpret_cast<const uint8_t*>(row);
  k::VF sum = hn::Zero(d);
  int64_t i = 0;
  for (; i + k::kLanes <= n; i += k::kLanes) {
    sum = hn::MulAdd(k::Decoder<kType>::Full(bytes, i), hn::LoadU(d, q + i), sum);
  }
  float out = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; i < n; ++i) out += q[i] * (kType == DType::kF16 ? F16ToF32(row[i]) : Bf16ToF32(row[i]));
  return out;
}

template <DType kType>
void AddScaled(float scale, const uint16_t* row, int64_t n, float* out) {
  const k::DF d;
  const auto* bytes = reinterpret_cast<const uint8_t*>(row);
  const k::VF factor = hn::Set(d, scale);
  int64_t i = 0;
  for (; i + k::kLanes <= n; i += k::kLanes) {
    hn::StoreU(hn::MulAdd(factor, k::Decoder<kType>::Full(bytes, i), hn::LoadU(d, out + i)), d,
               out + i);
  }
  for (; i < n; ++i)
    out[i] += scale * (kType == DType::kF16 ? F16ToF32(row[i]) : Bf16ToF32(row[i]));
}

template <DType kType>
void AttendTyped(const float* q, const KvLayerView& kv, int64_t kv_head, const int32_t* pages,
                 int64_t kv_len, float* scores, float* out) {
  const int64_t dim = kv.head_dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  float top = -INFINITY;
  for (int64_t t = 0; t < kv_len; ++t) {
    const uint16_t* key = kv.keys + kv.Offset(pages[t / kPageSize], kv_head, t % kPageSize);
    scores[t] = DotHalf<kType>(q, key, dim) * scale;
    if (scores[t] > top) top = scores[t];
  }
  float total = 0;
  for (int64_t i = 0; i < dim; ++i) out[i] = 0;
  for (int64_t t = 0; t < kv_len; ++t) {
    const float weight = std::exp(scores[t] - top);
    total += weight;
    if (weight == 0) continue;
    AddScaled<kType>(weight, kv.values + kv.Offset(pages[t / kPageSize], kv_head, t % kPageSize),
                     dim, out);
  }
  const float inverse = 1.0f / total;
  for (int64_t i = 0; i < dim; ++i) out[i] *= inverse;
}

void AttendImpl(const float* q, const KvLayerView& kv, int64_t kv_head, const int32_t* pages,
                int64_t kv_len, float* scores, float* out) {
  if (kv.bf16) {
    AttendTyped<DType::kBF16>(q, kv, kv_head, pages, kv_len, scores, out);
  } else {
    AttendTyped<DType::kF16>(q, kv, kv_head, pages, kv_len, scores, out);
  }
}

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

HWY_EXPORT(AttendImpl);
HWY_EXPORT(RmsNormImpl);

int64_t KvLayerView::Offset(int64_t page, int64_t kv_head, int64_t token) const {
  return ((page * num_kv_heads + kv_head) * kPageSize + token) * head_dim;
}

void AttendHead(const float* q, const KvLayerView& kv, int64_t kv_head, const int32_t* pages,
                int64_t kv_len, float* scores, float* out) {
  HWY_DYNAMIC_DISPATCH(AttendImpl)(q, kv, kv_head, pages, kv_len, scores, out);
}

void RmsNorm(const float* x, const float* weight, int64_t n, float eps, float* out) {
  HWY_DYNAMIC_DISPATCH(RmsNormImpl)(x, weight, n, eps, out);
}

void RopeInterleaved(float* head, const float* cos, const float* sin, int64_t rope_dims) {
  for (int64_t i = 0; i < rope_dims / 2; ++i) {
    const float a = head[2 * i], b = head[2 * i + 1];
    head[2 * i] = a * cos[i] - b * sin[i];
    head[2 * i + 1] = a * sin[i] + b * cos[i];
  }
}

}  // namespace isotherm::gpu
#endif  // HWY_ONCE
