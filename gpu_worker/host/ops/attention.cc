#include "gpu_worker/host/ops/attention.h"

#include <algorithm>
#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "gpu_worker/host/ops/attention.cc"
#include "hwy/foreach_target.h"  // recompiles the namespace below for every target
// After foreach_target.
#include "common/kernels/decode-inl.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::gpu {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
namespace k = isotherm::kernels_internal::HWY_NAMESPACE;

// Rows are padded to this many floats, zero behind head_dim.
constexpr int64_t kPad = 64;

int64_t Padded(int64_t n) { return (n + kPad - 1) / kPad * kPad; }

// out[j] = q . key j for the four keys at `keys`, `n` apart; the bits of DotHalf. n is a multiple
// of the lanes.
template <DType kType>
void DecodeHead(const uint16_t* row, int64_t n, float* out) {
  k::DecodeSpan<kType>(reinterpret_cast<const uint8_t*>(row), 0, n,
                       reinterpret_cast<const uint8_t*>(row + n), out);
}

// out[h] = q[h] . key for the heads of the group; lanes in fixed order.
void Dots(const float* q, int64_t num_heads, int64_t dim, const float* key, float* out,
          int64_t out_stride) {
  const k::DF d;
  for (int64_t h = 0; h < num_heads; ++h) {
    k::VF sum = hn::Zero(d);
    const float* const head = q + h * dim;
    int64_t i = 0;
    for (; i + k::kLanes <= dim; i += k::kLanes)
      sum = hn::MulAdd(hn::LoadU(d, head + i), hn::LoadU(d, key + i), sum);
    float dot = hn::GetLane(hn::SumOfLanes(d, sum));
    for (; i < dim; ++i) dot += head[i] * key[i];
    out[h * out_stride] = dot;
  }
}

// scores[t] = exp((scores[t] - top) * scale) in place; returns their sum.
float Exponentials(float* scores, int64_t count, float scale) {
  const k::DF d;
  float top = -INFINITY;
  for (int64_t t = 0; t < count; ++t) top = std::max(top, scores[t]);
  for (int64_t t = count; t % k::kLanes != 0; ++t) scores[t] = -INFINITY;  // exp gives 0
  const k::VF offset = hn::Set(d, top), factor = hn::Set(d, scale);
  // Below this exp is 0 in f32; Highway's Exp wants finite arguments.
  const k::VF floor = hn::Set(d, -120.0f);
  k::VF sum = hn::Zero(d);
  for (int64_t t = 0; t < count; t += k::kLanes) {
    const k::VF x = hn::Mul(hn::Sub(hn::LoadU(d, scores + t), offset), factor);
    const k::VF e = hn::IfThenElseZero(hn::Gt(x, floor), hn::Exp(d, hn::Max(x, floor)));
    hn::StoreU(e, d, scores + t);
    sum = hn::Add(sum, e);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

void AddScaled(float scale, const float* value, int64_t dim, float* out) {
  const k::DF d;
  const k::VF factor = hn::Set(d, scale);
  int64_t i = 0;
  for (; i + k::kLanes <= dim; i += k::kLanes)
    hn::StoreU(hn::MulAdd(factor, hn::LoadU(d, value + i), hn::LoadU(d, out + i)), d, out + i);
  for (; i < dim; ++i) out[i] += scale * value[i];
}

template <DType kType>
void AttendTyped(const AttendParams& p) {
  const int64_t dim = p.kv.head_dim;
  const int64_t stride = Padded(p.kv_len);
  float* const scores = p.scratch;  // [num_heads, stride]
  float* const decoded = p.scratch + kMaxGroup * stride;
  for (int64_t first = 0; first < p.kv_len; first += kPageSize) {
    const uint16_t* const page = p.kv.keys + p.kv.Offset(p.pages[first / kPageSize], p.kv_head, 0);
    for (int64_t t = first; t < std::min(p.kv_len, first + kPageSize); ++t) {
      DecodeHead<kType>(page + (t - first) * dim, dim, decoded);
      Dots(p.q, p.num_heads, dim, decoded, scores + t, stride);
    }
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  float inverse[kMaxGroup];
  for (int64_t h = 0; h < p.num_heads; ++h) {
    inverse[h] = 1.0f / Exponentials(scores + h * stride, p.kv_len, scale);
    std::fill_n(p.out + h * dim, dim, 0.0f);
  }
  for (int64_t first = 0; first < p.kv_len; first += kPageSize) {
    const uint16_t* const page =
        p.kv.values + p.kv.Offset(p.pages[first / kPageSize], p.kv_head, 0);
    for (int64_t t = first; t < std::min(p.kv_len, first + kPageSize); ++t) {
      DecodeHead<kType>(page + (t - first) * dim, dim, decoded);
      for (int64_t h = 0; h < p.num_heads; ++h) {
        const float weight = scores[h * stride + t];
        if (weight != 0) AddScaled(weight, decoded, dim, p.out + h * dim);
      }
    }
  }
  for (int64_t h = 0; h < p.num_heads; ++h) {
    for (int64_t i = 0; i < dim; ++i) p.out[h * dim + i] *= inverse[h];
  }
}

void AttendImpl(const AttendParams& p) {
  p.kv.bf16 ? AttendTyped<DType::kBF16>(p) : AttendTyped<DType::kF16>(p);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace isotherm::gpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace isotherm::gpu {

HWY_EXPORT(AttendImpl);

void Attend(const AttendParams& params) { HWY_DYNAMIC_DISPATCH(AttendImpl)(params); }

}  // namespace isotherm::gpu
#endif  // HWY_ONCE
