#include "common/kernels/matmul.h"

#include <algorithm>
#include <atomic>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/status_macros.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "common/kernels/matmul.cc"
#include "hwy/foreach_target.h"  // recompiles the namespace below for every target
// After foreach_target.
#include "common/kernels/dot-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels_internal {
namespace HWY_NAMESPACE {
namespace {

// Blocking of the many-row product: kMatMulRowTile weight rows by kDepth elements, decoded (24 KB),
// stay in L1 beside the x tile (9 KB); accumulators of kBatch rows (48 KB) in L2.
constexpr int64_t kDepth = 384;
constexpr int64_t kBatch = 48;
// Rows up to this long are decoded whole: 8 rows (24 KB) beside an x tile of 6 (18 KB) in L1.
constexpr int64_t kShortDepth = 768;
constexpr int kShortTile = 8;
// How far ahead of the pass in hand weights are fetched, at least: memory latency (100 ns) times a
// core's share of bandwidth, with room.
constexpr int64_t kAheadBytes = 8 * 1024;
// x rows whose 4 * kMaxGroup accumulators fit the registers beside decoded weights, and the most
// rows for which decoding once a group is no dearer than through L1 (matmul_benchmark, rows:8).
constexpr int kMaxGroup = 4;
constexpr int kMaxFewRows = 8;
static_assert(kDepth % kRun == 0 && kMatMulRowTile % kPassRows == 0);

const uint8_t* WeightRow(const MatrixView& w, int64_t row) {
  return reinterpret_cast<const uint8_t*>(w.data) + row * w.row_bytes;
}

void Put(const MatMulParams& p, int64_t x_row, int64_t w_row, float value) {
  float& y = p.y[x_row * p.y_stride + w_row];
  y = p.accumulate ? y + value : value;
}

// kPassRows weight rows by 1 to kMaxGroup x rows, decoded in registers.
template <DType kType>
void GroupDots(const uint8_t* const* w, const uint8_t* const* ahead, const float* const* x,
               int num_x, int64_t columns, float* sums) {
  switch (num_x) {
    case 1:
      return DotTile<kType, kPassRows, 1>(w, ahead, x, columns, sums);
    case 2:
      return DotTile<kType, kPassRows, 2>(w, ahead, x, columns, sums);
    case 3:
      return DotTile<kType, kPassRows, 3>(w, ahead, x, columns, sums);
    case 4:
      return DotTile<kType, kPassRows, 4>(w, ahead, x, columns, sums);
  }
}

// Few x rows: weights go from memory through registers, kPassRows rows a pass; a second group of x
// rows finds them in cache.
template <DType kType>
void FewRows(const MatMulParams& p, int64_t first, int64_t last) {
  const int num_x = static_cast<int>(p.num_rows);
  const int groups = (num_x + kMaxGroup - 1) / kMaxGroup;
  const int group = (num_x + groups - 1) / groups;
  const float* x[kMaxFewRows];
  for (int i = 0; i < num_x; ++i) x[i] = p.x + i * p.x_stride;
  const int64_t pass_bytes = kPassRows * p.w.row_bytes;
  const int64_t ahead_bytes = CeilDiv<int64_t>(kAheadBytes, pass_bytes) * pass_bytes;
  for (int64_t n = first; n < last; n += kPassRows) {
    const int count = static_cast<int>(std::min<int64_t>(kPassRows, last - n));
    const uint8_t* w[kPassRows];
    const uint8_t* ahead[kPassRows];
    for (int r = 0; r < kPassRows; ++r) {
      w[r] = WeightRow(p.w, n + std::min(r, count - 1));
      ahead[r] = w[r] + ahead_bytes;
    }
    float sums[kMaxFewRows * kPassRows];
    for (int i = 0; i < num_x; i += group) {
      GroupDots<kType>(w, i == 0 ? ahead : w, x + i, std::min(group, num_x - i), p.w.columns,
                       sums + i * kPassRows);
    }
    for (int i = 0; i < num_x; ++i) {
      for (int r = 0; r < count; ++r) Put(p, i, n + r, sums[i * kPassRows + r]);
    }
  }
}

void Store(const MatMulParams& p, int64_t x_row, int64_t n0, int count, const float* sums) {
  float* const y = p.y + x_row * p.y_stride + n0;
  if (p.accumulate) {
    for (int r = 0; r < count; ++r) y[r] += sums[r];
  } else {
    std::memcpy(y, sums, static_cast<size_t>(count) * sizeof(float));
  }
}

// One block: weight rows [n0, n0 + count) by x rows [x0, x0 + num_x).
template <DType kType>
void BlockProduct(const MatMulParams& p, int64_t n0, int count, int64_t x0, int num_x) {
  HWY_ALIGN float w[kMatMulRowTile * kDepth];
  HWY_ALIGN float acc[kBatch * kMatMulRowTile * kLanes];
  HWY_ALIGN float x_tail[kBatch * kLanes];
  constexpr int64_t kAccStride = kMatMulRowTile * kLanes;
  const int passes = (count + kPassRows - 1) / kPassRows;
  const int64_t columns = p.w.columns;
  std::memset(acc, 0, static_cast<size_t>(num_x * kAccStride) * sizeof(float));

  const float* x[kBatch];
  const float* tail[kBatch];
  const int64_t whole = columns / kLanes * kLanes;
  for (int i = 0; i < num_x; ++i) {
    x[i] = p.x + (x0 + i) * p.x_stride;
    tail[i] = x_tail + i * kLanes;
    if (whole < columns) {
      hn::Store(LoadPadded(x[i] + whole, columns - whole), DF(), x_tail + i * kLanes);
    }
  }
  for (int64_t k0 = 0; k0 < columns; k0 += kDepth) {
    const int64_t depth = std::min(kDepth, columns - k0);
    for (int r = 0; r < passes * kPassRows; ++r) {
      const uint8_t* const row = WeightRow(p.w, n0 + std::min(r, count - 1));
      // The row's next piece, or at its end the first one of the row a tile further.
      const uint8_t* const ahead = k0 + kDepth < columns
                                       ? row + (k0 + kDepth) / kRun * Decoder<kType>::kRunBytes
                                       : row + kMatMulRowTile * p.w.row_bytes;
      DecodeSpan<kType>(row, k0, depth, ahead, w + r * kDepth);
    }
    const int64_t vecs = depth / kLanes;
    for (int i = 0, tile; i < num_x; i += tile) {
      tile = TileSize(num_x - i);
      for (int pass = 0; pass < passes; ++pass) {
        const float* const wp = w + pass * kPassRows * kDepth;
        float* const ap = acc + i * kAccStride + pass * kPassRows * kLanes;
        AccumulateRows(tile, wp, kDepth, x + i, k0, vecs, ap, kAccStride);
        if (vecs * kLanes < depth) {
          AccumulateRows(tile, wp + vecs * kLanes, kDepth, tail + i, 0, 1, ap, kAccStride);
        }
      }
    }
  }
  for (int i = 0; i < num_x; ++i) {
    float sums[kMatMulRowTile];
    for (int pass = 0; pass < passes; ++pass) {
      FinishTile(acc + i * kAccStride + pass * kPassRows * kLanes, kAccStride, 1,
                 sums + pass * kPassRows, kPassRows);
    }
    Store(p, x0 + i, n0, count, sums);
  }
}

// Short rows: weight rows [n0, n0 + count), count <= kShortTile, fit L1 decoded whole, and every
// accumulator lives in registers from first to last.
template <DType kType>
void ShortProduct(const MatMulParams& p, int64_t n0, int count) {
  HWY_ALIGN float w[kShortTile * kShortDepth];
  const int passes = (count + kPassRows - 1) / kPassRows;
  for (int r = 0; r < passes * kPassRows; ++r) {
    const uint8_t* const row = WeightRow(p.w, n0 + std::min(r, count - 1));
    DecodeSpan<kType>(row, 0, p.w.columns, row + kShortTile * p.w.row_bytes, w + r * kShortDepth);
  }
  for (int64_t i = 0, tile; i < p.num_rows; i += tile) {
    tile = TileSize(p.num_rows - i);
    const float* x[kTileX];
    float sums[kTileX * kShortTile];
    for (int64_t j = 0; j < tile; ++j) x[j] = p.x + (i + j) * p.x_stride;
    for (int pass = 0; pass < passes; ++pass) {
      DecodedProduct(static_cast<int>(tile), w + pass * kPassRows * kShortDepth, kShortDepth, x,
                     p.w.columns / kLanes, sums + pass * kPassRows, kShortTile);
    }
    for (int64_t j = 0; j < tile; ++j) Store(p, i + j, n0, count, sums + j * kShortTile);
  }
}

template <DType kType>
void ManyRows(const MatMulParams& p, int64_t first, int64_t last) {
  if (p.w.columns <= kShortDepth && p.w.columns % kLanes == 0) {
    for (int64_t n0 = first; n0 < last; n0 += kShortTile) {
      ShortProduct<kType>(p, n0, static_cast<int>(std::min<int64_t>(kShortTile, last - n0)));
    }
    return;
  }
  for (int64_t n0 = first; n0 < last; n0 += kMatMulRowTile) {
    const int count = static_cast<int>(std::min(kMatMulRowTile, last - n0));
    for (int64_t x0 = 0; x0 < p.num_rows; x0 += kBatch) {
      BlockProduct<kType>(p, n0, count, x0, static_cast<int>(std::min(kBatch, p.num_rows - x0)));
    }
  }
}

void MatMulRowsImpl(const MatMulParams& p, int64_t first, int64_t last) {
  WithType(p.w.dtype, [&](auto type) {
    if (p.num_rows <= kMaxFewRows) {
      FewRows<type()>(p, first, last);
    } else {
      ManyRows<type()>(p, first, last);
    }
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels_internal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace isotherm {
namespace kernels_internal {
HWY_EXPORT(MatMulRowsImpl);
}  // namespace kernels_internal

namespace {

// A section costs 0.2 us with workers awake, but 7 us of the caller with workers asleep: a product
// must be worth about half of the latter.
constexpr int64_t kSharedFromNanoseconds = 3000;
// Weight bytes of one piece of work: large against the cursor's cost, small against a layer.
constexpr int64_t kPieceBytes = 32 * 1024;

// Rough time on one core: 20 bytes of weights or 30 products a nanosecond.
int64_t EstimateNanoseconds(const MatMulParams& p) {
  const int64_t weight_bytes = p.w.rows * p.w.row_bytes;
  return std::max(weight_bytes / 20, p.w.rows * p.w.columns / 30 * p.num_rows);
}

}  // namespace

absl::Status ValidateMatMul(const MatMulParams& p) {
  ISOTHERM_RETURN_IF_ERROR(ValidateMatrix(p.w));
  if (p.num_rows < 0) {
    return absl::InvalidArgumentError(absl::StrCat("product of ", p.num_rows, " rows"));
  }
  if (p.num_rows == 0 || p.w.rows == 0) return absl::OkStatus();
  if (p.x == nullptr || p.y == nullptr) {
    return absl::InvalidArgumentError("product of no x or into no y");
  }
  if (p.num_rows > 1 && (p.x_stride < p.w.columns || p.y_stride < p.w.rows)) {
    return absl::InvalidArgumentError(absl::StrCat("strides x ", p.x_stride, ", y ", p.y_stride,
                                                   " do not hold a product of [", p.w.rows, ", ",
                                                   p.w.columns, "]"));
  }
  return absl::OkStatus();
}

void MatMulRows(const MatMulParams& params, int64_t first, int64_t last) {
  using namespace kernels_internal;  // NOLINT: HWY_DYNAMIC_DISPATCH wants the table's bare name
  if (params.num_rows == 0 || first >= last) return;
  HWY_DYNAMIC_DISPATCH(MatMulRowsImpl)(params, first, last);
}

absl::Status MatMul(const MatMulParams& params, ThreadPool& pool) {
  ISOTHERM_RETURN_IF_ERROR(ValidateMatMul(params));
  if (params.num_rows == 0 || params.w.rows == 0) return absl::OkStatus();
  if (pool.num_threads() == 1 || EstimateNanoseconds(params) < kSharedFromNanoseconds) {
    MatMulRows(params, 0, params.w.rows);
    return absl::OkStatus();
  }
  // At least 4 pieces a thread where there are rows for it, so that a slow thread costs little.
  const int64_t rows = params.w.rows;
  const int64_t by_bytes = kPieceBytes / params.w.row_bytes;
  const int64_t by_share = rows / (4 * pool.num_threads());
  const int64_t piece = RoundUp<int64_t>(std::max<int64_t>(1, std::min(by_bytes, by_share)),
                                         params.num_rows == 1 ? int64_t{4} : kMatMulRowTile);
  std::atomic<int64_t> cursor{0};
  pool.RunElastic([&](int) {
    for (int64_t n; (n = cursor.fetch_add(piece, std::memory_order_relaxed)) < rows;) {
      MatMulRows(params, n, std::min(rows, n + piece));
    }
  });
  return absl::OkStatus();
}

}  // namespace isotherm
#endif  // HWY_ONCE
