// Products of weight rows with those of many x rows that ask for them, and no others. Columns are
// walked in blocks: a block of all weight rows is decoded once and stays in L1, as does the block
// of x, so that each product costs its multiplications. They keep to the rule of dot-inl.h.
#if defined(ISOTHERM_COMMON_KERNELS_BLOCK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOTHERM_COMMON_KERNELS_BLOCK_INL_H_
#undef ISOTHERM_COMMON_KERNELS_BLOCK_INL_H_
#else
#define ISOTHERM_COMMON_KERNELS_BLOCK_INL_H_
#endif

#include <bit>

#include "common/kernels/stream-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels_internal {
namespace HWY_NAMESPACE {

// Eight vectors of x or y stay in registers.
constexpr int64_t kBlockRuns = kRunVecs < 8 ? 8 / kRunVecs : 1;
constexpr int64_t kBlock = kBlockRuns * kRun;
constexpr int kBlockVecs = static_cast<int>(kBlock / kLanes);

// x rows in a list and, for each, the weight rows that it is multiplied with, as bits. A pair's
// position is the number of set bits before it.
struct PairList {
  const int32_t* rows = nullptr;   // [num_rows]
  const uint16_t* bits = nullptr;  // [num_rows], none of them 0
  int64_t num_rows = 0;
  uint32_t any = 0;  // the OR of all bits
};

// Decodes columns [first, first + kBlock) of the weight rows in use, fewer at the end of a row with
// zeros behind, and fetches as much ahead. Returns the number of vectors that count.
template <DType kType>
HWY_INLINE int DecodeBlock(const Rows& w, uint32_t any, const Ahead& ahead, int64_t first,
                           int64_t columns, float* HWY_RESTRICT block) {
  using Dec = Decoder<kType>;
  const int64_t count = HWY_MIN(kBlock, columns - first);
  const int64_t run = first / kRun;
  FetchBytes(ahead, run * Dec::kRunBytes, (run + (count + kRun - 1) / kRun) * Dec::kRunBytes);
  for (; any != 0; any &= any - 1) {
    const int r = std::countr_zero(any);
    float* const out = block + r * kBlock;
    if (count < kBlock) {
      DecodeSpan<kType>(w.at[r], first, count, w.at[r], out);
      continue;
    }
#pragma GCC unroll 4
    for (int64_t i = 0; i < kBlockRuns; ++i) {
      VF v[kRunVecs];
      Dec::Run(w.at[r], run + i, v);
#pragma GCC unroll 8
      for (int j = 0; j < kRunVecs; ++j) {
        hn::StoreU(v[j], DF(), out + i * kRun + j * kLanes);
      }
    }
  }
  return static_cast<int>((count + kLanes - 1) / kLanes);
}

// dots[pair] = weight row . x row. x: `stride` floats a row, zero behind the last column up to a
// whole vector. sums: kLanes floats a pair, scratch.
template <DType kType>
HWY_NOINLINE void PairDots(const Rows& w, const PairList& list, const Ahead& ahead, const float* x,
                           int64_t stride, int64_t columns, float* HWY_RESTRICT sums,
                           float* HWY_RESTRICT dots) {
  const DF d;
  HWY_ALIGN float block[SparseFfnTuning::kMaxChunk * kBlock];
  int64_t num_pairs = 0;
  for (int64_t i = 0; i < list.num_rows; ++i) num_pairs += std::popcount(list.bits[i]);
  std::memset(sums, 0, static_cast<size_t>(num_pairs * kLanes) * sizeof(float));
  for (int64_t first = 0; first < columns; first += kBlock) {
    const int vecs = DecodeBlock<kType>(w, list.any, ahead, first, columns, block);
    float* HWY_RESTRICT sum = sums;
    for (int64_t i = 0; i < list.num_rows; ++i) {
      const float* const xp = x + list.rows[i] * stride + first;
      uint32_t bits = list.bits[i];
      if (vecs < kBlockVecs) {
        for (; bits != 0; bits &= bits - 1, sum += kLanes) {
          const float* const wp = block + std::countr_zero(bits) * kBlock;
          VF acc = hn::LoadU(d, sum);
          for (int v = 0; v < vecs; ++v) {
            acc = hn::MulAdd(hn::LoadU(d, wp + v * kLanes), hn::LoadU(d, xp + v * kLanes), acc);
          }
          hn::StoreU(acc, d, sum);
        }
        continue;
      }
      VF xv[kBlockVecs];
#pragma GCC unroll 8
      for (int v = 0; v < kBlockVecs; ++v) xv[v] = hn::LoadU(d, xp + v * kLanes);
      for (; bits != 0; bits &= bits - 1, sum += kLanes) {
        const float* const wp = block + std::countr_zero(bits) * kBlock;
        VF acc = hn::LoadU(d, sum);
#pragma GCC unroll 8
        for (int v = 0; v < kBlockVecs; ++v) {
          acc = hn::MulAdd(hn::LoadU(d, wp + v * kLanes), xv[v], acc);
        }
        hn::StoreU(acc, d, sum);
      }
    }
  }
  for (int64_t i = 0; i < num_pairs; ++i) dots[i] = Sum(hn::LoadU(d, sums + i * kLanes));
}

// y row += scale[pair] * weight row, pair after pair. y: `stride` floats a row, room for whole
// vectors.
template <DType kType>
HWY_NOINLINE void PairScaled(const Rows& w, const PairList& list, const Ahead& ahead,
                             const float* HWY_RESTRICT scale, int64_t columns, float* y,
                             int64_t stride) {
  const DF d;
  HWY_ALIGN float block[SparseFfnTuning::kMaxChunk * kBlock];
  for (int64_t first = 0; first < columns; first += kBlock) {
    const int vecs = DecodeBlock<kType>(w, list.any, ahead, first, columns, block);
    const float* HWY_RESTRICT a = scale;
    for (int64_t i = 0; i < list.num_rows; ++i) {
      float* const yp = y + list.rows[i] * stride + first;
      uint32_t bits = list.bits[i];
      if (vecs < kBlockVecs) {
        for (; bits != 0; bits &= bits - 1, ++a) {
          const float* const wp = block + std::countr_zero(bits) * kBlock;
          for (int v = 0; v < vecs; ++v) {
            hn::StoreU(hn::MulAdd(hn::Set(d, *a), hn::LoadU(d, wp + v * kLanes),
                                  hn::LoadU(d, yp + v * kLanes)),
                       d, yp + v * kLanes);
          }
        }
        continue;
      }
      VF yv[kBlockVecs];
#pragma GCC unroll 8
      for (int v = 0; v < kBlockVecs; ++v) yv[v] = hn::LoadU(d, yp + v * kLanes);
      for (; bits != 0; bits &= bits - 1, ++a) {
        const float* const wp = block + std::countr_zero(bits) * kBlock;
        const VF av = hn::Set(d, *a);
#pragma GCC unroll 8
        for (int v = 0; v < kBlockVecs; ++v) {
          yv[v] = hn::MulAdd(av, hn::LoadU(d, wp + v * kLanes), yv[v]);
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
