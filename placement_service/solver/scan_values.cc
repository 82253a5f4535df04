#include "placement_service/solver/scan_values.h"

#include <algorithm>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "placement_service/solver/scan_values.cc"
#include "hwy/foreach_target.h"  // recompiles the namespace below for every target
// After foreach_target.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::solver_internal {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, 16>;
constexpr size_t kLanes = hn::MaxLanes(DF());
constexpr size_t kWord = 64;
constexpr size_t kBlockWords = 16;  // of which sums are floats

template <typename Mask>
uint64_t BitsOf(Mask mask) {
  uint8_t bytes[8] = {};  // StoreMaskBits writes whole bytes, at least one
  hn::StoreMaskBits(DF(), mask, bytes);
  return bytes[0] | uint64_t{bytes[1]} << 8;
}

auto MaskOf(uint64_t bits) {
  uint8_t bytes[8];  // LoadMaskBits reads eight
  std::memcpy(bytes, &bits, sizeof(bytes));
  return hn::LoadMaskBits(DF(), bytes);
}

void ScanWindowImpl(const float* values, size_t count, float low, float high, uint64_t* above,
                    uint64_t* within, WindowScan* out) {
  const DF d;
  const auto low_v = hn::Set(d, low), high_v = hn::Set(d, high);
  const size_t words = count / kWord;
  for (size_t block = 0; block < words; block += kBlockWords) {
    auto sum = hn::Zero(d), above_sum = hn::Zero(d);
    for (size_t w = block; w < std::min(words, block + kBlockWords); ++w) {
      uint64_t above_bits = 0, within_bits = 0;
      for (size_t i = 0; i < kWord; i += kLanes) {
        const auto v = hn::LoadU(d, values + w * kWord + i);
        const auto over = hn::Gt(v, high_v);
        above_bits |= BitsOf(over) << i;
        within_bits |= BitsOf(hn::Ge(v, low_v)) << i;
        sum = hn::Add(sum, v);
        above_sum = hn::Add(above_sum, hn::IfThenElseZero(over, v));
      }
      above[w] = above_bits;
      within[w] = within_bits & ~above_bits;
    }
    out->sum += hn::GetLane(hn::SumOfLanes(d, sum));
    out->above_sum += hn::GetLane(hn::SumOfLanes(d, above_sum));
  }
  if (count % kWord == 0) return;
  above[words] = within[words] = 0;
  for (size_t n = words * kWord; n < count; ++n) {
    const float v = values[n];
    out->sum += v;
    out->above_sum += v > high ? v : 0.0f;
    above[words] |= uint64_t{v > high} << (n % kWord);
    within[words] |= uint64_t{v >= low && !(v > high)} << (n % kWord);
  }
}

void SumHotImpl(const float* values, size_t count, const uint64_t* hot, HotSum* out) {
  const DF d;
  const size_t words = count / kWord;
  auto least = hn::Set(d, out->least);
  for (size_t block = 0; block < words; block += kBlockWords) {
    auto sum = hn::Zero(d), hot_sum = hn::Zero(d);
    for (size_t w = block; w < std::min(words, block + kBlockWords); ++w) {
      for (size_t i = 0; i < kWord; i += kLanes) {
        const auto v = hn::LoadU(d, values + w * kWord + i);
        sum = hn::Add(sum, v);
        least = hn::Min(least, v);
        hot_sum = hn::Add(hot_sum, hn::IfThenElseZero(MaskOf(hot[w] >> i), v));
      }
    }
    out->sum += hn::GetLane(hn::SumOfLanes(d, sum));
    out->hot += hn::GetLane(hn::SumOfLanes(d, hot_sum));
  }
  out->least = hn::GetLane(hn::MinOfLanes(d, least));
  for (size_t n = words * kWord; n < count; ++n) {
    out->sum += values[n];
    out->least = std::min(out->least, values[n]);
    out->hot += (hot[n / kWord] >> (n % kWord) & 1) != 0 ? values[n] : 0.0f;
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace isotherm::solver_internal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace isotherm {
namespace solver_internal {
HWY_EXPORT(ScanWindowImpl);
HWY_EXPORT(SumHotImpl);
}  // namespace solver_internal

using namespace solver_internal;  // NOLINT: HWY_DYNAMIC_DISPATCH wants the tables' bare names

WindowScan ScanWindow(std::span<const float> values, float low, float high, uint64_t* above,
                      uint64_t* within) {
  WindowScan out;
  HWY_DYNAMIC_DISPATCH(ScanWindowImpl)
  (values.data(), values.size(), low, high, above, within, &out);
  return out;
}

HotSum SumHot(std::span<const float> values, const uint64_t* hot) {
  HotSum out;
  HWY_DYNAMIC_DISPATCH(SumHotImpl)(values.data(), values.size(), hot, &out);
  return out;
}

}  // namespace isotherm
#endif  // HWY_ONCE
