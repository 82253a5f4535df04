// Products of weight rows with the x rows that ask for them, pair after pair: four pairs side by
// side, each weight row read from its beginning to its end. Where most weight rows have one or two
// pairs this is faster than walking blocks of columns of many of them at once (block-inl.h): a
// bundle's rows often lie multiples of 4 KiB apart, so that the same columns of more than a few of
// them, at hand and on their way, push each other out of the L1 cache. They keep to the rule of
// dot-inl.h.
#if defined(ISOTHERM_COMMON_KERNELS_PAIR_STREAM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOTHERM_COMMON_KERNELS_PAIR_STREAM_INL_H_
#undef ISOTHERM_COMMON_KERNELS_PAIR_STREAM_INL_H_
#else
#define ISOTHERM_COMMON_KERNELS_PAIR_STREAM_INL_H_
#endif

#include "common/kernels/block-inl.h"
#include "common/kernels/stream-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels_internal {
namespace HWY_NAMESPACE {

// kPassRows consecutive pairs of a list, or one.
struct PairGroup {
  const uint8_t* w[kPassRows];  // their weight rows; one that has several pairs comes as often
  int32_t first = 0;            // pair
  int count = 0;
  bool one_row = false;  // all of one weight row, which then is decoded once
};

// Walks a list's pairs in groups, and knows the weight rows of the group to come.
class PairGroups {
 public:
  HWY_INLINE PairGroups(const Rows& w, const PairList& list) : w_(w), list_(list) { Fill(next_); }
  // False at the end.
  HWY_INLINE bool Next(PairGroup& group) {
    group = next_;
    if (group.count == 0) return false;
    Fill(next_);
    return true;
  }
  // The weight rows of the group after `group` that are not its own, or, after the last, `after`.
  HWY_INLINE Rows Following(const PairGroup& group, const Rows& after) const {
    if (next_.count == 0) return after;
    Rows rows;
    const uint8_t* last = group.w[group.count - 1];
    for (int i = 0; i < next_.count; ++i) {
      if (next_.w[i] != last) rows.at[rows.count++] = next_.w[i];
      last = next_.w[i];
    }
    return rows;
  }

 private:
  HWY_INLINE void Fill(PairGroup& group) {
    group.first = pair_;
    group.count = 0;
    const int32_t num_pairs = list_.first[w_.count];
    if (pair_ >= num_pairs) return;
    while (pair_ >= list_.first[row_ + 1]) ++row_;
    group.one_row = list_.first[row_ + 1] - pair_ >= kPassRows;
    const int count = num_pairs - pair_ >= kPassRows ? kPassRows : 1;
    for (; group.count < count; ++pair_) {
      while (pair_ >= list_.first[row_ + 1]) ++row_;
      group.w[group.count++] = w_.at[row_];
    }
  }
  const Rows& w_;
  const PairList& list_;
  PairGroup next_;
  int32_t pair_ = 0;
  int row_ = 0;
};

// Calls use(r, column, v) for every vector v of the weight rows of kW pairs, which begins at that
// column; zero behind the last one. Of each pair the columns ascend. kOneRow: all are the same row.
template <DType kType, int kW, bool kOneRow, typename Use>
HWY_INLINE void WalkPairs(const uint8_t* const* weights, const Ahead& ahead, int64_t columns,
                          const Use& use) {
  using Dec = Decoder<kType>;
  constexpr int kRows = HWY_MIN(kW, kOneRow ? 1 : kPassRows);  // to decode
  const uint8_t* w[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) w[r] = weights[r];
  const int64_t runs = columns / kRun;
  const auto step = [&](int64_t run, const auto& scales, int64_t i) __attribute__((always_inline)) {
    VF v[kRunVecs];
#pragma GCC unroll 4
    for (int r = 0; r < kW; ++r) {
      if (r < kRows) DecodeRun<kType>(w[r], run, kHasScales<kType> ? scales[r][i] : 0.0f, v);
#pragma GCC unroll 8
      for (int j = 0; j < kRunVecs; ++j) use(r, run * kRun + j * kLanes, v[j]);
    }
  };
  WalkRuns<kType, kRows>(w, runs, ahead, step);
  int64_t k = runs * kRun;
  for (; k + kLanes <= columns; k += kLanes) {
#pragma GCC unroll 4
    for (int r = 0; r < kW; ++r) use(r, k, Dec::Full(w[kOneRow ? 0 : r], k));
  }
  if (k == columns) return;
#pragma GCC unroll 4
  for (int r = 0; r < kW; ++r) use(r, k, Dec::Tail(w[kOneRow ? 0 : r], k, columns - k));
}

// dots[i] = w[i] . x row at xs[i], for kW pairs. x has zeros behind its last column, up to a whole
// vector.
template <DType kType, DType kX, int kW, bool kOneRow>
HWY_NOINLINE void DotsOfPairs(const uint8_t* const* weights, const uint8_t* const* xs,
                              const Ahead& ahead, int64_t columns, float* HWY_RESTRICT dots) {
  VF acc[kW];
  const uint8_t* x[kW];
#pragma GCC unroll 4
  for (int r = 0; r < kW; ++r) {
    acc[r] = hn::Zero(DF());
    x[r] = xs[r];
  }
  WalkPairs<kType, kW, kOneRow>(
      weights, ahead, columns, [&](int r, int64_t column, VF v) __attribute__((always_inline)) {
        const uint8_t* const at = x[r] + column * XRows<kX>::kBytes;
        acc[r] = hn::MulAdd(v, Decoder<kX>::Vec(at), acc[r]);
      });
  if constexpr (kW == 4) {
    SumEach(acc[0], acc[1], acc[2], acc[3], dots);
  } else {
#pragma GCC unroll 4
    for (int r = 0; r < kW; ++r) dots[r] = Sum(acc[r]);
  }
}

// y row at ys[i] += scale[i] * w[i], for kW pairs one after the other; two may share a y row. y
// rows have room for whole vectors.
template <DType kType, int kW, bool kOneRow>
HWY_NOINLINE void ScaledOfPairs(const uint8_t* const* weights, float* const* ys, const float* scale,
                                const Ahead& ahead, int64_t columns) {
  const DF d;
  VF a[kW];
  float* y[kW];
#pragma GCC unroll 4
  for (int r = 0; r < kW; ++r) {
    a[r] = hn::Set(d, scale[r]);
    y[r] = ys[r];
  }
  WalkPairs<kType, kW, kOneRow>(
      weights, ahead, columns, [&](int r, int64_t column, VF v) __attribute__((always_inline)) {
        float* const at = y[r] + column;
        hn::StoreU(hn::MulAdd(a[r], v, hn::LoadU(d, at)), d, at);
      });
}

// Calls fn(kW, kOneRow), both std::integral_constants, for a group's pairs.
template <typename Fn>
HWY_INLINE void WithGroup(const PairGroup& group, const Fn& fn) {
  using One = std::true_type;
  using Many = std::false_type;
  if (group.count == 1) return fn(std::integral_constant<int, 1>(), One());
  if (group.one_row) return fn(std::integral_constant<int, kPassRows>(), One());
  fn(std::integral_constant<int, kPassRows>(), Many());
}

// dots[pair] = weight row . x row. Fetched at the end: `after`.
template <DType kType, DType kX>
void StreamPairDots(const Rows& w, const PairList& list, const Ahead& after, const XRows<kX>& x,
                    int64_t columns, float* dots) {
  PairGroups groups(w, list);
  for (PairGroup group; groups.Next(group);) {
    const uint8_t* xs[kPassRows];
    for (int i = 0; i < group.count; ++i) xs[i] = x.At(list.rows[group.first + i], 0);
    const Ahead ahead{groups.Following(group, after.rows), after.into, after.lines_per_page};
    WithGroup(group, [&](auto count, auto one_row) {
      DotsOfPairs<kType, kX, count(), one_row()>(group.w, xs, ahead, columns, dots + group.first);
    });
  }
}

// y row += scale[pair] * weight row, pair after pair; y: `stride` floats a row.
template <DType kType>
void StreamPairScaled(const Rows& w, const PairList& list, const float* scale, const Ahead& after,
                      int64_t columns, float* y, int64_t stride) {
  PairGroups groups(w, list);
  for (PairGroup group; groups.Next(group);) {
    float* ys[kPassRows];
    for (int i = 0; i < group.count; ++i) ys[i] = y + list.rows[group.first + i] * stride;
    const Ahead ahead{groups.Following(group, after.rows), after.into, after.lines_per_page};
    WithGroup(group, [&](auto count, auto one_row) {
      ScaledOfPairs<kType, count(), one_row()>(group.w, ys, scale + group.first, ahead, columns);
    });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels_internal
HWY_AFTER_NAMESPACE();

#endif  // include guard, once per target
