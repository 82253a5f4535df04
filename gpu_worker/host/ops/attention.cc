#include "gpu_worker/host/ops/attention.h"

#include <algorithm>
#include <cmath>

#include "gpu_worker/device.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "gpu_worker/host/ops/attention.cc"
#include "hwy/foreach_target.h"  // recompiles the namespace below for every target
// After foreach_target.
#include "common/kernels/dot-inl.h"
#include "hwy/contrib/math/math-inl.h"
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

// out[j] = q . key j for the four keys at `keys`, `n` apart; the bits of DotHalf. n is a multiple
// of the lanes.
template <DType kType>
void FourDots(const float* q, const uint16_t* keys, int64_t n, float* out) {
  const k::DF d;
  const auto* bytes = reinterpret_cast<const uint8_t*>(keys);
  k::VF s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  for (int64_t i = 0; i < n; i += k::kLanes) {
    const k::VF x = hn::LoadU(d, q + i);
    s0 = hn::MulAdd(k::Decoder<kType>::Full(bytes, i), x, s0);
    s1 = hn::MulAdd(k::Decoder<kType>::Full(bytes, n + i), x, s1);
    s2 = hn::MulAdd(k::Decoder<kType>::Full(bytes, 2 * n + i), x, s2);
    s3 = hn::MulAdd(k::Decoder<kType>::Full(bytes, 3 * n + i), x, s3);
  }
  k::SumEach(s0, s1, s2, s3, out);
}

// scores[0 .. count) *= scale; returns the largest product.
float ScaleAndMax(float scale, int64_t count, float* scores) {
  const k::DF d;
  const k::VF factor = hn::Set(d, scale);
  k::VF top = hn::Set(d, -INFINITY);
  int64_t t = 0;
  for (; t + k::kLanes <= count; t += k::kLanes) {
    const k::VF v = hn::Mul(hn::LoadU(d, scores + t), factor);
    hn::StoreU(v, d, scores + t);
    top = hn::Max(top, v);
  }
  float largest = hn::GetLane(hn::MaxOfLanes(d, top));
  for (; t < count; ++t) {
    scores[t] *= scale;
    largest = std::max(largest, scores[t]);
  }
  return largest;
}

// scores[t] becomes exp(scores[t] - top); returns their sum. A padded last vector, so that a
// weight's bits do not depend on how many follow it.
float ExpAndSum(float top, int64_t count, float* scores) {
  const k::DF d;
  const k::VF shift = hn::Set(d, top);
  k::VF sum = hn::Zero(d);
  int64_t t = 0;
  for (; t + k::kLanes <= count; t += k::kLanes) {
    const k::VF v = hn::Exp(d, hn::Sub(hn::LoadU(d, scores + t), shift));
    hn::StoreU(v, d, scores + t);
    sum = hn::Add(sum, v);
  }
  if (t < count) {
    HWY_ALIGN float tail[k::kLanes];
    for (int64_t i = 0; i < k::kLanes; ++i) tail[i] = t + i < count ? scores[t + i] : -INFINITY;
    const k::VF v = hn::Exp(d, hn::Sub(hn::Load(d, tail), shift));
    hn::Store(v, d, tail);
    for (int64_t i = 0; t + i < count; ++i) scores[t + i] = tail[i];
    sum = hn::Add(sum, v);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// out[0 .. kVecs * lanes) of columns `first`.. = sum over tokens of weights[t] * value row t, times
// `inverse`; accumulators stay in registers.
template <DType kType, int kVecs>
void WeightedValues(const float* weights, const KvLayerView& kv, int64_t kv_head,
                    const int32_t* pages, int64_t kv_len, int64_t first, float inverse,
                    float* out) {
  const k::DF d;
  k::VF sums[kVecs];
#pragma GCC unroll 8
  for (int j = 0; j < kVecs; ++j) sums[j] = hn::Zero(d);
  for (int64_t base = 0; base < kv_len; base += kPageSize) {
    const auto* row = reinterpret_cast<const uint8_t*>(
        kv.values + kv.Offset(pages[base / kPageSize], kv_head, 0));
    const int64_t end = std::min<int64_t>(kPageSize, kv_len - base);
    for (int64_t t = 0; t < end; ++t) {
      const k::VF weight = hn::Set(d, weights[base + t]);
#pragma GCC unroll 8
      for (int j = 0; j < kVecs; ++j) {
        const k::VF v = k::Decoder<kType>::Full(row, t * kv.head_dim + first + j * k::kLanes);
        sums[j] = hn::MulAdd(weight, v, sums[j]);
      }
    }
  }
  const k::VF factor = hn::Set(d, inverse);
#pragma GCC unroll 8
  for (int j = 0; j < kVecs; ++j) {
    hn::StoreU(hn::Mul(sums[j], factor), d, out + first + j * k::kLanes);
  }
}

template <DType kType>
void AttendTyped(const float* q, const KvLayerView& kv, int64_t kv_head, const int32_t* pages,
                 int64_t kv_len, float* scores, float* out) {
  const int64_t dim = kv.head_dim;
  const bool whole = dim % k::kLanes == 0;
  static_assert(kPageSize % 4 == 0);
  for (int64_t base = 0; base < kv_len; base += kPageSize) {
    const uint16_t* keys = kv.keys + kv.Offset(pages[base / kPageSize], kv_head, 0);
    const int64_t end = std::min<int64_t>(kPageSize, kv_len - base);
    int64_t t = 0;
    if (whole) {
      for (; t + 4 <= end; t += 4) FourDots<kType>(q, keys + t * dim, dim, scores + base + t);
    }
    for (; t < end; ++t) scores[base + t] = DotHalf<kType>(q, keys + t * dim, dim);
  }
  const float top = ScaleAndMax(1.0f / std::sqrt(static_cast<float>(dim)), kv_len, scores);
  const float inverse = 1.0f / ExpAndSum(top, kv_len, scores);
  int64_t i = 0;
  for (; i + 4 * k::kLanes <= dim; i += 4 * k::kLanes) {
    WeightedValues<kType, 4>(scores, kv, kv_head, pages, kv_len, i, inverse, out);
  }
  for (; i + k::kLanes <= dim; i += k::kLanes) {
    WeightedValues<kType, 1>(scores, kv, kv_head, pages, kv_len, i, inverse, out);
  }
  for (; i < dim; ++i) {
    float sum = 0;
    for (int64_t t = 0; t < kv_len; ++t) {
      const uint16_t bits = kv.values[kv.Offset(pages[t / kPageSize], kv_head, t % kPageSize) + i];
      sum += scores[t] * (kType == DType::kF16 ? F16ToF32(bits) : Bf16ToF32(bits));
    }
    out[i] = sum * inverse;
  }
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
