// Dot products and scaled sums of weight rows, one copy per ISA.
//
// One rule makes a product's bits independent of how it was batched: lane l of the accumulator of
// (weight row, x row) takes elements l, l + kLanes, ... in ascending order, each by one MulAdd of
// the exactly decoded weight, and SumOfLanes ends it. Every kernel here keeps to it.
#if defined(ISOTHERM_COMMON_KERNELS_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOTHERM_COMMON_KERNELS_DOT_INL_H_
#undef ISOTHERM_COMMON_KERNELS_DOT_INL_H_
#else
#define ISOTHERM_COMMON_KERNELS_DOT_INL_H_
#endif

#include "common/kernels/decode-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels_internal {
namespace HWY_NAMESPACE {

// Weight rows of one pass: that many DRAM streams, each x vector loaded once for all of them.
constexpr int kPassRows = 4;
// x rows of a register tile: 6 * 4 accumulators of AVX-512's 32 registers, 2 * 4 of AVX2's 16.
#if HWY_TARGET == HWY_AVX3
constexpr int kTileX = 6;
#else
constexpr int kTileX = 2;
#endif
// Most x rows for which decoding in registers, once per x tile, is not dearer than a pass through
// L1.
constexpr int kMaxDirectX = 4;

HWY_INLINE float Sum(VF v) { return hn::GetLane(hn::SumOfLanes(DF(), v)); }

HWY_INLINE VF LoadPadded(const float* HWY_RESTRICT p, int64_t count) {
  HWY_ALIGN float padded[kLanes] = {};
  std::memcpy(padded, p, static_cast<size_t>(count) * sizeof(float));
  return hn::Load(DF(), padded);
}

// out[i * kPassRows + r] = w[r] . x[i] for kW weight rows and kX rows of `columns` floats.
// ahead: kPassRows rows that are wanted next, fetched meanwhile.
template <DType kType, int kW, int kX>
HWY_NOINLINE void DotTile(const uint8_t* const* w, const uint8_t* const* ahead,
                          const float* const* x, int64_t columns, float* HWY_RESTRICT out) {
  using Dec = Decoder<kType>;
  const DF d;
  VF acc[kW][kX];
#pragma GCC unroll 8
  for (int r = 0; r < kW; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < kX; ++i) acc[r][i] = hn::Zero(d);
  }
  const uint8_t* wp[kW];
  const uint8_t* next[kPassRows];
  const float* xp[kX];
  for (int r = 0; r < kW; ++r) wp[r] = w[r];
  for (int r = 0; r < kPassRows; ++r) next[r] = ahead[r];
  for (int i = 0; i < kX; ++i) xp[i] = x[i];

  const int64_t runs = columns / kRun;
  for (int64_t run = 0; run < runs; ++run) {
#pragma GCC unroll 8
    for (int r = 0; r < kPassRows; ++r) PrefetchRun<kType>(next[r], run);
#pragma GCC unroll 8
    for (int r = 0; r < kW; ++r) {
      VF v[kRunVecs];
      Dec::Run(wp[r], run, v);
#pragma GCC unroll 8
      for (int j = 0; j < kRunVecs; ++j) {
#pragma GCC unroll 8
        for (int i = 0; i < kX; ++i) {
          acc[r][i] = hn::MulAdd(v[j], hn::LoadU(d, xp[i] + run * kRun + j * kLanes), acc[r][i]);
        }
      }
    }
  }
  int64_t k = runs * kRun;
  for (; k + kLanes <= columns; k += kLanes) {
#pragma GCC unroll 8
    for (int r = 0; r < kW; ++r) {
      const VF v = Dec::Full(wp[r], k);
#pragma GCC unroll 8
      for (int i = 0; i < kX; ++i) acc[r][i] = hn::MulAdd(v, hn::LoadU(d, xp[i] + k), acc[r][i]);
    }
  }
  if (k < columns) {
#pragma GCC unroll 8
    for (int i = 0; i < kX; ++i) {
      const VF xv = LoadPadded(xp[i] + k, columns - k);
#pragma GCC unroll 8
      for (int r = 0; r < kW; ++r) {
        acc[r][i] = hn::MulAdd(Dec::Tail(wp[r], k, columns - k), xv, acc[r][i]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kX; ++i) {
#pragma GCC unroll 8
    for (int r = 0; r < kW; ++r) out[i * kPassRows + r] = Sum(acc[r][i]);
  }
}

// Adds `vecs` further vectors to kX * kPassRows accumulators kept in memory: acc[i * x_stride + r *
// kLanes], lanes of (x row i, weight row r). w: kPassRows decoded rows, w_stride floats apart.
template <int kX>
HWY_NOINLINE void AccumulateTile(const float* HWY_RESTRICT w, int64_t w_stride,
                                 const float* const* x, int64_t x_offset, int64_t vecs,
                                 float* HWY_RESTRICT acc_out, int64_t acc_stride) {
  const DF d;
  VF acc[kX][kPassRows];
  const float* xp[kX];
#pragma GCC unroll 8
  for (int i = 0; i < kX; ++i) {
    xp[i] = x[i] + x_offset;
#pragma GCC unroll 8
    for (int r = 0; r < kPassRows; ++r) {
      acc[i][r] = hn::LoadU(d, acc_out + i * acc_stride + r * kLanes);
    }
  }
  for (int64_t v = 0; v < vecs; ++v) {
    VF wv[kPassRows];
#pragma GCC unroll 8
    for (int r = 0; r < kPassRows; ++r) wv[r] = hn::LoadU(d, w + r * w_stride + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kX; ++i) {
      const VF xv = hn::LoadU(d, xp[i] + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kPassRows; ++r) acc[i][r] = hn::MulAdd(wv[r], xv, acc[i][r]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kX; ++i) {
#pragma GCC unroll 8
    for (int r = 0; r < kPassRows; ++r) {
      hn::StoreU(acc[i][r], d, acc_out + i * acc_stride + r * kLanes);
    }
  }
}

// AccumulateTile for 1 <= num_x <= kTileX rows.
HWY_INLINE void AccumulateRows(int num_x, const float* HWY_RESTRICT w, int64_t w_stride,
                               const float* const* x, int64_t x_offset, int64_t vecs,
                               float* HWY_RESTRICT acc, int64_t acc_stride) {
  switch (num_x) {
    case 1:
      return AccumulateTile<1>(w, w_stride, x, x_offset, vecs, acc, acc_stride);
    case 2:
      return AccumulateTile<2>(w, w_stride, x, x_offset, vecs, acc, acc_stride);
#if HWY_TARGET == HWY_AVX3
    case 3:
      return AccumulateTile<3>(w, w_stride, x, x_offset, vecs, acc, acc_stride);
    case 4:
      return AccumulateTile<4>(w, w_stride, x, x_offset, vecs, acc, acc_stride);
    case 5:
      return AccumulateTile<5>(w, w_stride, x, x_offset, vecs, acc, acc_stride);
    case 6:
      return AccumulateTile<6>(w, w_stride, x, x_offset, vecs, acc, acc_stride);
#endif
  }
}

// y[k] += a[0] * w[0][k] + ... + a[kW - 1] * w[kW - 1][k], added one after the other. ahead: as in
// DotTile, or null where kFetch is false.
template <DType kType, int kW, bool kFetch>
HWY_NOINLINE void ScaledSum(const uint8_t* const* w, const uint8_t* const* ahead, const float* a,
                            int64_t columns, float* HWY_RESTRICT y) {
  using Dec = Decoder<kType>;
  const DF d;
  VF av[kW];
  const uint8_t* wp[kW];
  const uint8_t* next[kPassRows];
  for (int r = 0; r < kPassRows; ++r) next[r] = kFetch ? ahead[r] : nullptr;
  for (int r = 0; r < kW; ++r) {
    av[r] = hn::Set(d, a[r]);
    wp[r] = w[r];
  }
  const int64_t runs = columns / kRun;
  for (int64_t run = 0; run < runs; ++run) {
#pragma GCC unroll 8
    for (int r = 0; r < kPassRows; ++r) {
      if constexpr (kFetch) PrefetchRun<kType>(next[r], run);
    }
    VF yv[kRunVecs];
    float* const yp = y + run * kRun;
#pragma GCC unroll 8
    for (int j = 0; j < kRunVecs; ++j) yv[j] = hn::LoadU(d, yp + j * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kW; ++r) {
      VF v[kRunVecs];
      Dec::Run(wp[r], run, v);
#pragma GCC unroll 8
      for (int j = 0; j < kRunVecs; ++j) yv[j] = hn::MulAdd(av[r], v[j], yv[j]);
    }
#pragma GCC unroll 8
    for (int j = 0; j < kRunVecs; ++j) hn::StoreU(yv[j], d, yp + j * kLanes);
  }
  int64_t k = runs * kRun;
  for (; k + kLanes <= columns; k += kLanes) {
    VF yv = hn::LoadU(d, y + k);
#pragma GCC unroll 8
    for (int r = 0; r < kW; ++r) yv = hn::MulAdd(av[r], Dec::Full(wp[r], k), yv);
    hn::StoreU(yv, d, y + k);
  }
  if (k < columns) {
    VF yv = LoadPadded(y + k, columns - k);
#pragma GCC unroll 8
    for (int r = 0; r < kW; ++r) yv = hn::MulAdd(av[r], Dec::Tail(wp[r], k, columns - k), yv);
    HWY_ALIGN float padded[kLanes];
    hn::Store(yv, d, padded);
    std::memcpy(y + k, padded, static_cast<size_t>(columns - k) * sizeof(float));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels_internal
HWY_AFTER_NAMESPACE();

#endif  // include guard, once per target
