// Products of weight rows with one x row, each weight read once from memory: what limits them is
// how many of a core's line requests are in flight, so every pass names the rows that come next.
// They keep to the rule of dot-inl.h.
#if defined(ISOTHERM_COMMON_KERNELS_STREAM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOTHERM_COMMON_KERNELS_STREAM_INL_H_
#undef ISOTHERM_COMMON_KERNELS_STREAM_INL_H_
#else
#define ISOTHERM_COMMON_KERNELS_STREAM_INL_H_
#endif

#include "common/kernels/dot-inl.h"
#include "common/kernels/sparse_ffn_tuning.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels_internal {
namespace HWY_NAMESPACE {

// Weight rows that are read side by side.
struct Rows {
  const uint8_t* at[SparseFfnTuning::kMaxChunk];
  int count = 0;
};

// Rows to be fetched meanwhile, and how.
struct Ahead {
  Rows rows;
  FetchInto into = FetchInto::kNone;
  int lines_per_page = 64;
};

// Prefetches the lines that start in bytes [first, last) of the rows, first a multiple of 64, all
// or (kHeads) those near the start of a page.
template <FetchInto kInto, bool kHeads>
HWY_INLINE void FetchLines(const Ahead& ahead, int64_t first, int64_t last) {
  constexpr int kLocality = kInto == FetchInto::kL1 ? 3 : kInto == FetchInto::kL2 ? 2 : 0;
  const auto head_bytes = static_cast<uintptr_t>(ahead.lines_per_page) * 64;
#pragma GCC unroll 1
  for (int64_t at = first; at < last; at += 64) {
#pragma GCC unroll 1
    for (int r = 0; r < ahead.rows.count; ++r) {
      const uint8_t* const line = ahead.rows.at[r] + at;
      if (kHeads && reinterpret_cast<uintptr_t>(line) % 4096 >= head_bytes) continue;
      __builtin_prefetch(line, 0, kLocality);
      // GCC takes a function that only prefetches for one without effects and drops its calls.
      asm volatile("");
    }
  }
}

// Asks for the lines that start in bytes [first, last) of the rows. An address may lie past the
// end of the weights; a prefetch never faults.
HWY_INLINE void FetchBytes(const Ahead& ahead, int64_t first, int64_t last) {
  first = (first + 63) / 64 * 64;
  switch (ahead.into) {
    case FetchInto::kNone:
      return;
    case FetchInto::kL1:
      return FetchLines<FetchInto::kL1, false>(ahead, first, last);
    case FetchInto::kNonTemporal:
      return FetchLines<FetchInto::kNonTemporal, false>(ahead, first, last);
    case FetchInto::kL2:
      if (ahead.lines_per_page < 64) return FetchLines<FetchInto::kL2, true>(ahead, first, last);
      return FetchLines<FetchInto::kL2, false>(ahead, first, last);
  }
}

// Runs between two looks at what to fetch: whole lines of the 16-bit types.
constexpr int64_t kFetchRuns = 4;
// Runs whose block scales are made together.
constexpr int64_t kScaleRuns = 16;

template <DType kType>
constexpr bool kHasScales = kType == DType::kQ8_0 || kType == DType::kQ4_0;

// The scales of a row's blocks [first, first + count), widened together: one by one their way from
// 16 bits into every lane costs as much as a third of the block's products.
template <DType kType>
HWY_INLINE void MakeScales(const uint8_t* row, int64_t first, int64_t count,
                           float* HWY_RESTRICT scales) {
  constexpr int64_t kBytes = Decoder<kType>::kRunBytes;
  const uint8_t* block = row + first * kBytes;
#if HWY_TARGET == HWY_AVX3
  if (count == kScaleRuns) {
    // A vector holds the beginnings of kTogether blocks, which one permutation puts in their
    // places: one by one they would keep the port of permutations busy for half as long as the
    // weights do.
    constexpr int kTogether = kBytes == 18 ? 4 : 2;
    static_assert((kTogether - 1) * kBytes + 2 <= 64 && 64 <= kTogether * kBytes);
    const hn::Full512<uint16_t> d16;
    // Lane i takes the first word of block i % kTogether.
    const auto which =
        hn::Mul(hn::And(hn::Iota(d16, 0), hn::Set(d16, kTogether - 1)), hn::Set(d16, kBytes / 2));
    __m512i halves = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int i = 0; i < kScaleRuns; i += kTogether) {
      halves = _mm512_mask_permutexvar_epi16(halves, ((1u << kTogether) - 1) << i, which.raw,
                                             _mm512_loadu_si512(block + i * kBytes));
    }
    hn::StoreU(VF{_mm512_cvtph_ps(_mm512_castsi512_si256(halves))}, DF(), scales);
    return;
  }
#endif
  HWY_ALIGN uint16_t halves[kScaleRuns] = {};
  for (int64_t i = 0; i < count; ++i, block += kBytes) std::memcpy(&halves[i], block, 2);
  for (int64_t i = 0; i < kScaleRuns; i += kLanes) {
    hn::StoreU(WidenHalves(hn::LoadU(D16(), halves + i)), DF(), scales + i);
  }
}

// Calls step(run, scales, i) for every run of kW rows, scales[r][i] being row r's scale of that run
// where the type has one, and fetches in between.
template <DType kType, int kW, typename Step>
HWY_INLINE void WalkRuns(const uint8_t* const (&w)[kW], int64_t runs, const Ahead& ahead,
                         const Step& step) {
  constexpr int64_t kBytes = Decoder<kType>::kRunBytes;
  float scales[kW][kScaleRuns];
  for (int64_t run = 0; run < runs;) {
    const int64_t first = run;
    const int64_t last = HWY_MIN(run + kScaleRuns, runs);
    if constexpr (kHasScales<kType>) {
      for (int r = 0; r < kW; ++r) MakeScales<kType>(w[r], first, last - first, scales[r]);
    }
    while (run < last) {
      const int64_t end = HWY_MIN(run + kFetchRuns, last);
      FetchBytes(ahead, run * kBytes, end * kBytes);
      for (; run < end; ++run) step(run, scales, run - first);
    }
  }
}

// The weights of run `run` of a row.
template <DType kType>
HWY_INLINE void DecodeRun(const uint8_t* row, int64_t run, float scale, VF (&out)[kRunVecs]) {
  if constexpr (kHasScales<kType>) {
    Decoder<kType>::RunScaled(row, run, hn::Set(DF(), scale), out);
  } else {
    Decoder<kType>::Run(row, run, out);
  }
}

// dots[r] = rows.at[r] . x, for kW rows.
template <DType kType, int kW>
HWY_NOINLINE void StreamDots(const Rows& rows, const Ahead& ahead, const float* HWY_RESTRICT x,
                             int64_t columns, float* HWY_RESTRICT dots) {
  using Dec = Decoder<kType>;
  const DF d;
  VF acc[kW];
  const uint8_t* w[kW];
#pragma GCC unroll 4
  for (int r = 0; r < kW; ++r) {
    acc[r] = hn::Zero(d);
    w[r] = rows.at[r];
  }
  const int64_t runs = columns / kRun;
  const auto step = [&](int64_t run, const auto& scales, int64_t i) __attribute__((always_inline)) {
    VF xv[kRunVecs];
#pragma GCC unroll 8
    for (int j = 0; j < kRunVecs; ++j) xv[j] = hn::LoadU(d, x + run * kRun + j * kLanes);
#pragma GCC unroll 4
    for (int r = 0; r < kW; ++r) {
      VF v[kRunVecs];
      DecodeRun<kType>(w[r], run, kHasScales<kType> ? scales[r][i] : 0.0f, v);
#pragma GCC unroll 8
      for (int j = 0; j < kRunVecs; ++j) acc[r] = hn::MulAdd(v[j], xv[j], acc[r]);
    }
  };
  WalkRuns<kType, kW>(w, runs, ahead, step);
  int64_t k = runs * kRun;
  for (; k + kLanes <= columns; k += kLanes) {
    const VF xv = hn::LoadU(d, x + k);
#pragma GCC unroll 4
    for (int r = 0; r < kW; ++r) acc[r] = hn::MulAdd(Dec::Full(w[r], k), xv, acc[r]);
  }
  if (k < columns) {
    const VF xv = LoadPadded(x + k, columns - k);
#pragma GCC unroll 4
    for (int r = 0; r < kW; ++r) acc[r] = hn::MulAdd(Dec::Tail(w[r], k, columns - k), xv, acc[r]);
  }
  if constexpr (kW == 4) {
    SumEach(acc[0], acc[1], acc[2], acc[3], dots);
  } else {
#pragma GCC unroll 4
    for (int r = 0; r < kW; ++r) dots[r] = Sum(acc[r]);
  }
}

// y[k] += scale[0] * row 0[k] + ... + scale[kW - 1] * row kW - 1[k], one after the other.
template <DType kType, int kW>
HWY_NOINLINE void StreamScaled(const Rows& rows, const Ahead& ahead,
                               const float* HWY_RESTRICT scale, int64_t columns,
                               float* HWY_RESTRICT y) {
  using Dec = Decoder<kType>;
  const DF d;
  VF a[kW];
  const uint8_t* w[kW];
#pragma GCC unroll 4
  for (int r = 0; r < kW; ++r) {
    a[r] = hn::Set(d, scale[r]);
    w[r] = rows.at[r];
  }
  const int64_t runs = columns / kRun;
  const auto step = [&](int64_t run, const auto& scales, int64_t i) __attribute__((always_inline)) {
    VF yv[kRunVecs];
    float* const yp = y + run * kRun;
#pragma GCC unroll 8
    for (int j = 0; j < kRunVecs; ++j) yv[j] = hn::LoadU(d, yp + j * kLanes);
#pragma GCC unroll 4
    for (int r = 0; r < kW; ++r) {
      VF v[kRunVecs];
      DecodeRun<kType>(w[r], run, kHasScales<kType> ? scales[r][i] : 0.0f, v);
#pragma GCC unroll 8
      for (int j = 0; j < kRunVecs; ++j) yv[j] = hn::MulAdd(a[r], v[j], yv[j]);
    }
#pragma GCC unroll 8
    for (int j = 0; j < kRunVecs; ++j) hn::StoreU(yv[j], d, yp + j * kLanes);
  };
  WalkRuns<kType, kW>(w, runs, ahead, step);
  int64_t k = runs * kRun;
  for (; k + kLanes <= columns; k += kLanes) {
    VF yv = hn::LoadU(d, y + k);
#pragma GCC unroll 4
    for (int r = 0; r < kW; ++r) yv = hn::MulAdd(a[r], Dec::Full(w[r], k), yv);
    hn::StoreU(yv, d, y + k);
  }
  if (k < columns) {
    VF yv = LoadPadded(y + k, columns - k);
#pragma GCC unroll 4
    for (int r = 0; r < kW; ++r) yv = hn::MulAdd(a[r], Dec::Tail(w[r], k, columns - k), yv);
    HWY_ALIGN float padded[kLanes];
    hn::Store(yv, d, padded);
    std::memcpy(y + k, padded, static_cast<size_t>(columns - k) * sizeof(float));
  }
}

// The two for 1 to kPassRows rows.
template <DType kType>
HWY_INLINE void StreamDotsOf(const Rows& rows, const Ahead& ahead, const float* x, int64_t columns,
                             float* dots) {
  switch (rows.count) {
    case 1:
      return StreamDots<kType, 1>(rows, ahead, x, columns, dots);
    case 2:
      return StreamDots<kType, 2>(rows, ahead, x, columns, dots);
    case 3:
      return StreamDots<kType, 3>(rows, ahead, x, columns, dots);
    case 4:
      return StreamDots<kType, 4>(rows, ahead, x, columns, dots);
  }
}

template <DType kType>
HWY_INLINE void StreamScaledOf(const Rows& rows, const Ahead& ahead, const float* scale,
                               int64_t columns, float* y) {
  switch (rows.count) {
    case 1:
      return StreamScaled<kType, 1>(rows, ahead, scale, columns, y);
    case 2:
      return StreamScaled<kType, 2>(rows, ahead, scale, columns, y);
    case 3:
      return StreamScaled<kType, 3>(rows, ahead, scale, columns, y);
    case 4:
      return StreamScaled<kType, 4>(rows, ahead, scale, columns, y);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels_internal
HWY_AFTER_NAMESPACE();

#endif  // include guard, once per target
