#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "common/kernels/matrix_view.h"
#include "common/threading/thread_pool.h"

namespace isotherm {

// y[r, n] (+)= sum over k of w[n, k] * x[r, k].
// x: [num_rows, w.columns] f32, row r at x + r * x_stride; y: [num_rows, w.rows] f32, likewise.
// Strides in elements. y aliases neither x nor w. Weights multiply as stored (blocks decoded
// exactly to f32, x never quantised), sums in f32. The bits of y[r, n] depend on neither num_rows
// nor the threads: batching changes no output. Fastest with x rows on 64-byte boundaries.
struct MatMulParams {
  const float* x = nullptr;
  int64_t x_stride = 0;
  int64_t num_rows = 0;
  MatrixView w;
  float* y = nullptr;
  int64_t y_stride = 0;
  bool accumulate = false;  // true: added to what y holds
};

// InvalidArgument when shapes or strides disagree or w has no kernel.
absl::Status ValidateMatMul(const MatMulParams& params);

// Validates, then computes on the pool (elastically: a thread whose core is busy is not waited
// for); a product too small to share runs on the caller.
absl::Status MatMul(const MatMulParams& params, ThreadPool& pool);

// Columns [first, last) of y, that is weight rows [first, last), on the calling thread: for use
// inside a running section. The params have passed ValidateMatMul and 0 <= first <= last <= w.rows.
// Any split gives the same bits; multiples of kMatMulRowTile waste nothing.
void MatMulRows(const MatMulParams& params, int64_t first, int64_t last);
inline constexpr int64_t kMatMulRowTile = 16;

}  // namespace isotherm
