// Weights to F32 vectors, one copy per ISA. Included by kernel files inside foreach_target only.
#if defined(ISOTHERM_COMMON_KERNELS_DECODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOTHERM_COMMON_KERNELS_DECODE_INL_H_
#undef ISOTHERM_COMMON_KERNELS_DECODE_INL_H_
#else
#define ISOTHERM_COMMON_KERNELS_DECODE_INL_H_
#endif

#include <cstdint>
#include <cstring>

#include "common/tensor/dtype.h"
#include "common/tensor/half.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels_internal {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, 16>;
using VF = hn::Vec<DF>;
using DI = hn::Rebind<int32_t, DF>;
constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(DF()));
// All types are walked in runs of 32 elements: the block of the quantised ones.
constexpr int64_t kRun = 32;
constexpr int kRunVecs = static_cast<int>(kRun / kLanes);
static_assert(kRun % kLanes == 0);

// Rows may start at any byte.
template <class D, typename T = hn::TFromD<D>>
HWY_INLINE hn::Vec<D> LoadBytes(D d, const uint8_t* HWY_RESTRICT p) {
#if HWY_TARGET == HWY_SCALAR
  T aligned;  // the scalar target dereferences
  std::memcpy(&aligned, p, sizeof(T));
  return hn::LoadU(d, &aligned);
#else
  return hn::LoadU(d, reinterpret_cast<const T*>(p));
#endif
}

using D16 = hn::Rebind<uint16_t, DF>;

// Raw F16 to F32, infinities and NaN included.
HWY_INLINE VF WidenHalves(hn::Vec<D16> bits) {
#if HWY_TARGET == HWY_SCALAR
  return hn::Set(DF(), F16ToF32(hn::GetLane(bits)));  // Highway's emulation makes infinity finite
#else
  return hn::PromoteTo(DF(), hn::BitCast(hn::Rebind<hwy::float16_t, DF>(), bits));
#endif
}

// The block scale of Q8_0 and Q4_0 in every lane.
HWY_INLINE VF BroadcastHalf(const uint8_t* HWY_RESTRICT half) {
  uint16_t bits;
  std::memcpy(&bits, half, 2);
  return WidenHalves(hn::Set(D16(), bits));
}

// Decoded values are exact: a block scale of 11 bits times an integer of 8 fits F32's 24.
template <DType kType>
struct Decoder;

template <typename Derived, int64_t kElementBytes>
struct PlainDecoder {
  static constexpr int64_t kRunBytes = kRun * kElementBytes;
  // Elements [run * 32, run * 32 + 32) of the row.
  static HWY_INLINE void Run(const uint8_t* HWY_RESTRICT row, int64_t run, VF (&out)[kRunVecs]) {
    const uint8_t* const p = row + run * kRunBytes;
#pragma GCC unroll 8
    for (int j = 0; j < kRunVecs; ++j) out[j] = Derived::Vec(p + j * kLanes * kElementBytes);
  }
  // `count` < kLanes elements from `first` on; zero in the lanes above.
  static HWY_INLINE VF Tail(const uint8_t* HWY_RESTRICT row, int64_t first, int64_t count) {
    HWY_ALIGN uint8_t padded[kLanes * kElementBytes] = {};
    std::memcpy(padded, row + first * kElementBytes, static_cast<size_t>(count * kElementBytes));
    return Derived::Vec(padded);
  }
  static HWY_INLINE VF Full(const uint8_t* HWY_RESTRICT row, int64_t first) {
    return Derived::Vec(row + first * kElementBytes);
  }
};

template <>
struct Decoder<DType::kF32> : PlainDecoder<Decoder<DType::kF32>, 4> {
  static HWY_INLINE VF Vec(const uint8_t* HWY_RESTRICT p) { return LoadBytes(DF(), p); }
};

template <>
struct Decoder<DType::kF16> : PlainDecoder<Decoder<DType::kF16>, 2> {
  static HWY_INLINE VF Vec(const uint8_t* HWY_RESTRICT p) {
    return WidenHalves(LoadBytes(D16(), p));
  }
};

template <>
struct Decoder<DType::kBF16> : PlainDecoder<Decoder<DType::kBF16>, 2> {
  static HWY_INLINE VF Vec(const uint8_t* HWY_RESTRICT p) {
    const hn::Rebind<uint32_t, DF> du;
    const auto bits = hn::PromoteTo(du, LoadBytes(D16(), p));
    return hn::BitCast(DF(), hn::ShiftLeft<16>(bits));
  }
};

// Quantised rows are whole runs, so they have no tail.
struct NoTail {
  static HWY_INLINE VF Tail(const uint8_t*, int64_t, int64_t) { return hn::Zero(DF()); }
  static HWY_INLINE VF Full(const uint8_t*, int64_t) { return hn::Zero(DF()); }
};

template <>
struct Decoder<DType::kQ8_0> : NoTail {
  static constexpr int64_t kRunBytes = 34;
  static HWY_INLINE void Run(const uint8_t* HWY_RESTRICT row, int64_t run, VF (&out)[kRunVecs]) {
    RunScaled(row, run, BroadcastHalf(row + run * kRunBytes), out);
  }
  // With the block's scale, in every lane, made already.
  static HWY_INLINE void RunScaled(const uint8_t* HWY_RESTRICT row, int64_t run, VF scale,
                                   VF (&out)[kRunVecs]) {
    const DF d;
    const hn::Rebind<int8_t, DF> d8;
    const int8_t* const q = reinterpret_cast<const int8_t*>(row + run * kRunBytes + 2);
#pragma GCC unroll 8
    for (int j = 0; j < kRunVecs; ++j) {
      const auto wide = hn::PromoteTo(DI(), hn::LoadU(d8, q + j * kLanes));
      out[j] = hn::Mul(hn::ConvertTo(d, wide), scale);
    }
  }
};

template <>
struct Decoder<DType::kQ4_0> : NoTail {
  static constexpr int64_t kRunBytes = 18;
  static HWY_INLINE void Run(const uint8_t* HWY_RESTRICT row, int64_t run, VF (&out)[kRunVecs]) {
    RunScaled(row, run, BroadcastHalf(row + run * kRunBytes), out);
  }
  static HWY_INLINE void RunScaled(const uint8_t* HWY_RESTRICT row, int64_t run, VF scale,
                                   VF (&out)[kRunVecs]) {
    const uint8_t* const block = row + run * kRunBytes;
    const DF d;
    const DI di;
    const hn::Rebind<uint8_t, DF> d8;
#if HWY_TARGET == HWY_AVX3
    // One permutation per vector replaces subtract, convert and multiply. It looks at the low four
    // bits of an index only, so that the low half of a byte needs no mask.
    HWY_ALIGN static constexpr float kLevels[16] = {-8, -7, -6, -5, -4, -3, -2, -1,
                                                    0,  1,  2,  3,  4,  5,  6,  7};
    const __m512 levels = hn::Mul(hn::Load(d, kLevels), scale).raw;
    const __m512i bytes = hn::PromoteTo(di, hn::LoadU(d8, block + 2)).raw;
    out[0] = VF{_mm512_permutexvar_ps(bytes, levels)};
    out[1] = VF{_mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), levels)};
#else
    const auto mask = hn::Set(di, 15);
    const auto eight = hn::Set(di, 8);
#pragma GCC unroll 4
    for (int j = 0; j < kRunVecs / 2; ++j) {
      const auto bytes = hn::PromoteTo(di, hn::LoadU(d8, block + 2 + j * kLanes));
      const auto low = hn::Sub(hn::And(bytes, mask), eight);
      const auto high = hn::Sub(hn::ShiftRight<4>(bytes), eight);
      out[j] = hn::Mul(hn::ConvertTo(d, low), scale);
      out[j + kRunVecs / 2] = hn::Mul(hn::ConvertTo(d, high), scale);
    }
#endif
  }
};

// Asks for the bytes of run `run` of a row that is wanted soon. Into L2: four long rows would push
// each other out of L1. The address may lie past the end of the weights; a prefetch never faults.
template <DType kType>
HWY_INLINE void PrefetchRun(const uint8_t* row, int64_t run) {
  constexpr int64_t kBytes = Decoder<kType>::kRunBytes;
  if (kBytes < 32 && run % 2 != 0) return;  // 18 bytes of Q4_0: two runs a line
  const uint8_t* const p = row + run * kBytes;
  for (int64_t at = 0; at < kBytes; at += 64) __builtin_prefetch(p + at, 0, 2);
}

// out[0, count) = elements [first, first + count) of the row, first a multiple of 32; then zeros up
// to a multiple of kLanes. Meanwhile asks for as much from `ahead` on.
template <DType kType>
HWY_INLINE void DecodeSpan(const uint8_t* HWY_RESTRICT row, int64_t first, int64_t count,
                           const uint8_t* ahead, float* HWY_RESTRICT out) {
  using Dec = Decoder<kType>;
  const DF d;
  const int64_t run0 = first / kRun;
  const int64_t runs = count / kRun;
  for (int64_t run = 0; run < runs; ++run) {
    PrefetchRun<kType>(ahead, run);
    VF v[kRunVecs];
    Dec::Run(row, run0 + run, v);
#pragma GCC unroll 8
    for (int j = 0; j < kRunVecs; ++j) hn::StoreU(v[j], d, out + run * kRun + j * kLanes);
  }
  int64_t k = runs * kRun;
  for (; k + kLanes <= count; k += kLanes) hn::StoreU(Dec::Full(row, first + k), d, out + k);
  if (k < count) hn::StoreU(Dec::Tail(row, first + k, count - k), d, out + k);
}

// Calls fn(std::integral_constant<DType, ...>) for the types that have kernels.
template <typename Fn>
HWY_INLINE void WithType(DType dtype, const Fn& fn) {
  switch (dtype) {
    case DType::kF32:
      return fn(std::integral_constant<DType, DType::kF32>());
    case DType::kF16:
      return fn(std::integral_constant<DType, DType::kF16>());
    case DType::kBF16:
      return fn(std::integral_constant<DType, DType::kBF16>());
    case DType::kQ8_0:
      return fn(std::integral_constant<DType, DType::kQ8_0>());
    case DType::kQ4_0:
      return fn(std::integral_constant<DType, DType::kQ4_0>());
    default:
      return;  // refused by ValidateRowType()
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels_internal
HWY_AFTER_NAMESPACE();

#endif  // include guard, once per target
