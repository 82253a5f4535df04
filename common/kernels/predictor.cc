#include "common/kernels/predictor.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "common/kernels/predictor.cc"
#include "hwy/foreach_target.h"  // recompiles the namespace below for every target
// After foreach_target.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels_internal {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, 16>;
constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(DF()));

void ReluImpl(float* values, size_t count) {
  const DF d;
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const auto v = hn::LoadU(d, values + i);
    hn::StoreU(hn::IfThenZeroElse(hn::Le(v, hn::Zero(d)), v), d, values + i);
  }
  for (; i < count; ++i) values[i] = values[i] <= 0.0f ? 0.0f : values[i];
}

uint64_t WordOf(const float* scores, int64_t count, float threshold) {
  const DF d;
  const auto limit = hn::Set(d, threshold);
  uint64_t below = 0;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    uint8_t bytes[8] = {};  // StoreMaskBits writes whole bytes, at least one
    hn::StoreMaskBits(d, hn::Lt(hn::LoadU(d, scores + i), limit), bytes);
    const uint64_t bits = bytes[0] | uint64_t{bytes[1]} << 8;
    below |= bits << i;
  }
  for (; i < count; ++i) below |= uint64_t{scores[i] < threshold} << i;
  return ~below & (~uint64_t{0} >> (64 - count));
}

void ScoresToBitmapImpl(const ThresholdParams& p, int64_t first_word, int64_t last_word) {
  const int64_t words = (p.num_neurons + 63) / 64;
  for (int64_t row = 0; row < p.num_rows; ++row) {
    for (int64_t word = first_word; word < last_word; ++word) {
      const int64_t count = std::min<int64_t>(64, p.num_neurons - word * 64);
      p.bitmap[row * words + word] =
          WordOf(p.scores + row * p.stride + word * 64, count, p.threshold);
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels_internal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace isotherm {
namespace kernels_internal {
HWY_EXPORT(ReluImpl);
HWY_EXPORT(ScoresToBitmapImpl);
}  // namespace kernels_internal

using namespace kernels_internal;  // NOLINT: HWY_DYNAMIC_DISPATCH wants the tables' bare names

void Relu(std::span<float> values) { HWY_DYNAMIC_DISPATCH(ReluImpl)(values.data(), values.size()); }

void ScoresToBitmapWords(const ThresholdParams& params, int64_t first_word, int64_t last_word) {
  HWY_DYNAMIC_DISPATCH(ScoresToBitmapImpl)(params, first_word, last_word);
}

absl::Status ScoresToBitmap(const ThresholdParams& p) {
  if (p.num_rows < 0 || p.num_neurons < 0 || (p.num_rows > 1 && p.stride < p.num_neurons)) {
    return absl::InvalidArgumentError(absl::StrCat("scores [", p.num_rows, ", ", p.num_neurons,
                                                   "] with rows ", p.stride, " apart"));
  }
  if (p.num_rows == 0 || p.num_neurons == 0) return absl::OkStatus();
  if (p.scores == nullptr || p.bitmap == nullptr) {
    return absl::InvalidArgumentError("scores or bitmap are missing");
  }
  ScoresToBitmapWords(p, 0, (p.num_neurons + 63) / 64);
  return absl::OkStatus();
}

}  // namespace isotherm
#endif  // HWY_ONCE
