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

HWY_INLINE float Sum(VF v) { return hn::GetLane(hn::SumOfLanes(DF(), v)); }

// out[r] = Sum(v[r]), the same bits: lanes i and i + 8 first, then i and i + 4, i + 2, i + 1. Fewer
// than half the instructions of four Sums, which for rows of 576 are a quarter of a product's time.
HWY_INLINE void SumEach(VF v0, VF v1, VF v2, VF v3, float* HWY_RESTRICT out) {
#if HWY_TARGET == HWY_AVX3
  const __m512 a = _mm512_add_ps(_mm512_shuffle_f32x4(v0.raw, v1.raw, 0x44),
                                 _mm512_shuffle_f32x4(v0.raw, v1.raw, 0xee));
  const __m512 b = _mm512_add_ps(_mm512_shuffle_f32x4(v2.raw, v3.raw, 0x44),
                                 _mm512_shuffle_f32x4(v2.raw, v3.raw, 0xee));
  // Four blocks of 128 bits, one a vector.
  __m512 c = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  c = _mm512_add_ps(c, _mm512_permute_ps(c, 0x4e));
  c = _mm512_add_ps(c, _mm512_permute_ps(c, 0xb1));
  _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, c)));
#else
  out[0] = Sum(v0);
  out[1] = Sum(v1);
  out[2] = Sum(v2);
  out[3] = Sum(v3);
#endif
}

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
    if constexpr (kW == kPassRows) {
      SumEach(acc[0][i], acc[1][i], acc[2][i], acc[3][i], out + i * kPassRows);
    } else {
#pragma GCC unroll 8
      for (int r = 0; r < kW; ++r) out[i * kPassRows + r] = Sum(acc[r][i]);
    }
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

// out[i * out_stride + r] = the finished sum of accumulators (i, r), laid out as in AccumulateTile.
HWY_INLINE void FinishTile(const float* HWY_RESTRICT acc, int64_t acc_stride, int num_x,
                           float* HWY_RESTRICT out, int64_t out_stride) {
  const DF d;
  for (int i = 0; i < num_x; ++i) {
    const float* const a = acc + i * acc_stride;
    SumEach(hn::LoadU(d, a), hn::LoadU(d, a + kLanes), hn::LoadU(d, a + 2 * kLanes),
            hn::LoadU(d, a + 3 * kLanes), out + i * out_stride);
  }
}

// out[i * out_stride + r] = w[r] . x[i] for kX rows and kPassRows decoded rows of `vecs` whole
// vectors, w_stride floats apart.
template <int kX>
HWY_NOINLINE void DecodedTile(const float* HWY_RESTRICT w, int64_t w_stride, const float* const* x,
                              int64_t vecs, float* HWY_RESTRICT out, int64_t out_stride) {
  const DF d;
  VF acc[kX][kPassRows];
  const float* xp[kX];
#pragma GCC unroll 8
  for (int i = 0; i < kX; ++i) {
    xp[i] = x[i];
#pragma GCC unroll 8
    for (int r = 0; r < kPassRows; ++r) acc[i][r] = hn::Zero(d);
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
    SumEach(acc[i][0], acc[i][1], acc[i][2], acc[i][3], out + i * out_stride);
  }
}

// DecodedTile for 1 <= num_x <= kTileX rows.
HWY_INLINE void DecodedProduct(int num_x, const float* HWY_RESTRICT w, int64_t w_stride,
                               const float* const* x, int64_t vecs, float* HWY_RESTRICT out,
                               int64_t out_stride) {
  switch (num_x) {
    case 1:
      return DecodedTile<1>(w, w_stride, x, vecs, out, out_stride);
    case 2:
      return DecodedTile<2>(w, w_stride, x, vecs, out, out_stride);
#if HWY_TARGET == HWY_AVX3
    case 3:
      return DecodedTile<3>(w, w_stride, x, vecs, out, out_stride);
    case 4:
      return DecodedTile<4>(w, w_stride, x, vecs, out, out_stride);
    case 5:
      return DecodedTile<5>(w, w_stride, x, vecs, out, out_stride);
    case 6:
      return DecodedTile<6>(w, w_stride, x, vecs, out, out_stride);
#endif
  }
}

// Splits `left` x rows evenly over as few tiles as hold them: 8 as 4 + 4, not 6 + 2.
HWY_INLINE int TileSize(int64_t left) {
  const int64_t tiles = (left + kTileX - 1) / kTileX;
  return static_cast<int>((left + tiles - 1) / tiles);
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

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels_internal
HWY_AFTER_NAMESPACE();

#endif  // include guard, once per target
