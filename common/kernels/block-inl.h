// Products of weight rows with those of many x rows that ask for them, and no others. Columns are
// walked in blocks, which are decoded once: what is read and written once for several products is
// kept in registers, a weight row's block in dot products, that of y in sums of scaled rows. They
// keep to the rule of dot-inl.h.
#if defined(ISOTHERM_COMMON_KERNELS_BLOCK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOTHERM_COMMON_KERNELS_BLOCK_INL_H_
#undef ISOTHERM_COMMON_KERNELS_BLOCK_INL_H_
#else
#define ISOTHERM_COMMON_KERNELS_BLOCK_INL_H_
#endif

#include "common/kernels/stream-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels_internal {
namespace HWY_NAMESPACE {

// Eight vectors of x or y stay in registers.
constexpr int64_t kBlockRuns = kRunVecs < 8 ? 8 / kRunVecs : 1;
constexpr int64_t kBlock = kBlockRuns * kRun;
constexpr int kBlockVecs = static_cast<int>(kBlock / kLanes);

// The x rows that each weight row is multiplied with, weight row after weight row.
struct PairList {
  const int32_t* rows = nullptr;   // [num_pairs]
  const int32_t* first = nullptr;  // [weight rows + 1]: where a weight row's begin
};

// The weight rows that each y row takes in, y row after y row.
struct RowList {
  int64_t num_rows = 0;
  const int32_t* first = nullptr;   // [num_rows + 1]: where a y row's begin
  const int32_t* weight = nullptr;  // [num_pairs], ascending for a y row
  const float* scale = nullptr;     // [num_pairs]
};

// Rows of x of type kX, `stride` elements apart, zero behind the last column up to a whole vector.
template <DType kX>
struct XRows {
  const uint8_t* data = nullptr;
  int64_t stride = 0;
  static constexpr int64_t kBytes = kX == DType::kF32 ? 4 : 2;  // of an element
  HWY_INLINE const uint8_t* At(int64_t row, int64_t column) const {
    return data + (row * stride + column) * kBytes;
  }
};

// Columns [first, first + kBlock) of a weight row, fewer at its end with zeros behind.
template <DType kType>
HWY_INLINE void DecodeBlock(const uint8_t* row, int64_t first, int64_t columns,
                            VF (&out)[kBlockVecs]) {
  using Dec = Decoder<kType>;
  const int64_t count = HWY_MIN(kBlock, columns - first);
  if (count < kBlock) {
    HWY_ALIGN float block[kBlock] = {};
    DecodeSpan<kType>(row, first, count, row, block);
#pragma GCC unroll 8
    for (int v = 0; v < kBlockVecs; ++v) out[v] = hn::Load(DF(), block + v * kLanes);
    return;
  }
#pragma GCC unroll 4
  for (int64_t i = 0; i < kBlockRuns; ++i) {
    VF run[kRunVecs];
    Dec::Run(row, first / kRun + i, run);
#pragma GCC unroll 8
    for (int j = 0; j < kRunVecs; ++j) out[i * kRunVecs + j] = run[j];
  }
}

// Fetches what the block at column `first` has of the rows ahead. Returns its vectors that count.
template <DType kType>
HWY_INLINE int BeginBlock(const Ahead& ahead, int64_t first, int64_t columns) {
  using Dec = Decoder<kType>;
  const int64_t count = HWY_MIN(kBlock, columns - first);
  const int64_t run = first / kRun;
  FetchBytes(ahead, run * Dec::kRunBytes, (run + (count + kRun - 1) / kRun) * Dec::kRunBytes);
  return static_cast<int>((count + kLanes - 1) / kLanes);
}

// dots[pair] = weight row . x row. sums: kLanes floats a pair, scratch.
template <DType kType, DType kX>
HWY_NOINLINE void PairDots(const Rows& w, const PairList& list, const Ahead& ahead,
                           const XRows<kX>& x, int64_t columns, float* HWY_RESTRICT sums,
                           float* HWY_RESTRICT dots) {
  constexpr int64_t kVecBytes = kLanes * XRows<kX>::kBytes;
  constexpr int kTogether = 4;  // chains of additions side by side
  const DF d;
  const int64_t num_pairs = list.first[w.count];
  std::memset(sums, 0, static_cast<size_t>(num_pairs * kLanes) * sizeof(float));
  for (int64_t first = 0; first < columns; first += kBlock) {
    const int vecs = BeginBlock<kType>(ahead, first, columns);
    for (int r = 0; r < w.count; ++r) {
      int32_t pair = list.first[r];
      const int32_t last = list.first[r + 1];
      if (pair == last) continue;
      VF wv[kBlockVecs];
      DecodeBlock<kType>(w.at[r], first, columns, wv);
      if (vecs < kBlockVecs) {  // x ends here, too
        for (; pair < last; ++pair) {
          const uint8_t* const xp = x.At(list.rows[pair], first);
          VF acc = hn::LoadU(d, sums + pair * kLanes);
          for (int v = 0; v < vecs; ++v) {
            acc = hn::MulAdd(wv[v], Decoder<kX>::Vec(xp + v * kVecBytes), acc);
          }
          hn::StoreU(acc, d, sums + pair * kLanes);
        }
        continue;
      }
      for (; pair + kTogether <= last; pair += kTogether) {
        const uint8_t* xp[kTogether];
        VF acc[kTogether];
#pragma GCC unroll 4
        for (int i = 0; i < kTogether; ++i) {
          xp[i] = x.At(list.rows[pair + i], first);
          acc[i] = hn::LoadU(d, sums + (pair + i) * kLanes);
        }
#pragma GCC unroll 8
        for (int v = 0; v < kBlockVecs; ++v) {
#pragma GCC unroll 4
          for (int i = 0; i < kTogether; ++i) {
            acc[i] = hn::MulAdd(wv[v], Decoder<kX>::Vec(xp[i] + v * kVecBytes), acc[i]);
          }
        }
#pragma GCC unroll 4
        for (int i = 0; i < kTogether; ++i) hn::StoreU(acc[i], d, sums + (pair + i) * kLanes);
      }
      for (; pair < last; ++pair) {
        const uint8_t* const xp = x.At(list.rows[pair], first);
        VF acc = hn::LoadU(d, sums + pair * kLanes);
#pragma GCC unroll 8
        for (int v = 0; v < kBlockVecs; ++v) {
          acc = hn::MulAdd(wv[v], Decoder<kX>::Vec(xp + v * kVecBytes), acc);
        }
        hn::StoreU(acc, d, sums + pair * kLanes);
      }
    }
  }
  for (int64_t i = 0; i < num_pairs; ++i) dots[i] = Sum(hn::LoadU(d, sums + i * kLanes));
}

// y row += scale * weight row, for the pairs of `list` one after the other. used[r]: some row takes
// weight row r in. y: `stride` floats a row, room for whole vectors.
template <DType kType>
HWY_NOINLINE void PairScaled(const Rows& w, const bool* used, const RowList& list,
                             const Ahead& ahead, int64_t columns, float* y, int64_t stride) {
  const DF d;
  HWY_ALIGN float block[SparseFfnTuning::kMaxChunk * kBlock];
  for (int64_t first = 0; first < columns; first += kBlock) {
    const int vecs = BeginBlock<kType>(ahead, first, columns);
    for (int r = 0; r < w.count; ++r) {
      if (!used[r]) continue;
      VF wv[kBlockVecs];
      DecodeBlock<kType>(w.at[r], first, columns, wv);
#pragma GCC unroll 8
      for (int v = 0; v < kBlockVecs; ++v) hn::Store(wv[v], d, block + r * kBlock + v * kLanes);
    }
    for (int64_t row = 0; row < list.num_rows; ++row) {
      int32_t pair = list.first[row];
      const int32_t last = list.first[row + 1];
      if (pair == last) continue;
      float* const yp = y + row * stride + first;
      if (vecs < kBlockVecs) {
        for (; pair < last; ++pair) {
          const float* const wp = block + list.weight[pair] * kBlock;
          const VF av = hn::Set(d, list.scale[pair]);
          for (int v = 0; v < vecs; ++v) {
            hn::StoreU(hn::MulAdd(av, hn::Load(d, wp + v * kLanes), hn::LoadU(d, yp + v * kLanes)),
                       d, yp + v * kLanes);
          }
        }
        continue;
      }
      VF yv[kBlockVecs];
#pragma GCC unroll 8
      for (int v = 0; v < kBlockVecs; ++v) yv[v] = hn::LoadU(d, yp + v * kLanes);
      for (; pair < last; ++pair) {
        const float* const wp = block + list.weight[pair] * kBlock;
        const VF av = hn::Set(d, list.scale[pair]);
#pragma GCC unroll 8
        for (int v = 0; v < kBlockVecs; ++v) {
          yv[v] = hn::MulAdd(av, hn::Load(d, wp + v * kLanes), yv[v]);
        }
      }
#pragma GCC unroll 8
      for (int v = 0; v < kBlockVecs; ++v) hn::StoreU(yv[v], d, yp + v * kLanes);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels_internal
HWY_AFTER_NAMESPACE();

#endif  // include guard, once per target
