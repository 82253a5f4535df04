#include <atomic>
#include <type_traits>

#include "gpu_worker/cuda/kernels/product.cuh"

namespace isotherm::gpu {
namespace {

// Output o of row r is w[o] . x[r].
__device__ inline void StoreOutput(const ProductArgs& args, int o, int r, float value) {
  float* const y = args.y + r * args.y_stride + o;
  if (args.bias != nullptr) value += args.bias[o];
  switch (args.output) {
    case ProductOutput::kStore:
      *y = value;
      break;
    case ProductOutput::kRelu:
      *y = value < 0 ? 0.0f : value;  // a NaN stays
      break;
    case ProductOutput::kAdd:
      *y += value;
      break;
  }
}

template <class Format, int R>
__global__ void __launch_bounds__(kProductThreads, R == 1 ? RowStream<Format>::kBlocksAtOnce : 1)
    ProductKernel(ProductArgs args) {
  LetNextBegin();
  const int row0 = blockIdx.y * R;
  const int rows = min(R, *args.in.num_rows - row0);
  if (rows <= 0) return AwaitPrevious();
  extern __shared__ float xs[];
  const DeviceMatrix& w = args.w;
  const int columns = static_cast<int>(w.columns), padded = static_cast<int>(w.padded_columns);
  const int lane = threadIdx.x % kWarp;
  const int matrix_rows = static_cast<int>(w.rows);
  const int first = blockIdx.x * kProductWarps + threadIdx.x / kWarp;
  const int step = gridDim.x * kProductWarps;
  // Weights wait for nobody: their first pieces are under way while x is staged.
  if constexpr (R == 1) {
    RowStream<Format> stream;
    stream.Begin(w, first < matrix_rows ? first : -1);
    AwaitPrevious();
    StageRows<Format::kElems, 1>(args.in, row0, 1, columns, padded, xs);
    for (int o = first; o < matrix_rows; o += step) {
      const float value = stream.Dot(w, o, o + step < matrix_rows ? o + step : -1, xs);
      if (lane == 0) StoreOutput(args, o, row0, value);
    }
  } else {
    const int tasks = (matrix_rows + 1) / 2;
    WeightBatch<Format, 2> batch;
    if (first < tasks) batch.Load(w, {2 * first, min(2 * first + 1, matrix_rows - 1)}, lane);
    AwaitPrevious();
    StageRows<Format::kElems, R>(args.in, row0, rows, columns, padded, xs);
    for (int task = first; task < tasks; task += step) {
      const int which[2] = {2 * task, min(2 * task + 1, matrix_rows - 1)};
      if (task != first) batch.Load(w, which, lane);
      float acc[2][R];
      WarpDots<Format, 2, R>(w, which, xs, batch, acc);
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (lane != 2 * r + i || r >= rows || 2 * task + i >= matrix_rows) continue;
          StoreOutput(args, 2 * task + i, row0 + r, acc[i][r]);
        }
      }
    }
  }
}

// Rows of [q | k | v] that make one rotary pair, or two neighbours.
struct QkvTask {
  int head;    // of q, then k, then v
  int i0, i1;  // elements of the head
  int pair;    // of the rotary embedding; -1: not rotated
};

__device__ QkvTask DescribeQkv(const AttentionShape& shape, int task) {
  const int half = shape.head_dim / 2;
  QkvTask out;
  out.head = task / half;
  const int i = task % half;
  const bool rotary = out.head < shape.num_q_heads + shape.num_kv_heads && i < shape.rope_half;
  out.pair = rotary ? i : -1;
  if (rotary && shape.rope_neox) {
    out.i0 = i;
    out.i1 = i + shape.rope_half;
  } else {
    // Behind the rotated ones the rest follows in order; before them the same formula holds.
    out.i0 = 2 * i;
    out.i1 = 2 * i + 1;
  }
  return out;
}

// Matrix rows of the task's two elements.
struct QkvRows {
  int a = 0, b = 0;
};
__device__ inline QkvRows RowsOf(const AttentionShape& shape, const QkvTask& task) {
  return {task.head * shape.head_dim + task.i0, task.head * shape.head_dim + task.i1};
}

// The two elements of a row, rotated, to q or to their page.
__device__ inline void StoreQkv(const QkvArgs& args, const QkvTask& task, int row, float a,
                                float b) {
  const AttentionShape& shape = args.shape;
  if (args.bias != nullptr) {
    const QkvRows which = RowsOf(shape, task);
    a += args.bias[which.a];
    b += args.bias[which.b];
  }
  if (task.pair >= 0) {
    const float cos = args.rope_cos[int64_t{row} * shape.rope_half + task.pair];
    const float sin = args.rope_sin[int64_t{row} * shape.rope_half + task.pair];
    const float rotated = a * cos - b * sin;
    b = a * sin + b * cos;
    a = rotated;
  }
  if (task.head < shape.num_q_heads) {
    float* const q = args.q + (int64_t{row} * shape.num_q_heads + task.head) * shape.head_dim;
    q[task.i0] = a;
    q[task.i1] = b;
    return;
  }
  const StepRow& where = args.step.rows[row];
  const int page =
      args.step
          .page_tables[int64_t{where.table} * args.step.header->max_pages + where.position / 16];
  const bool is_key = task.head < shape.num_q_heads + shape.num_kv_heads;
  const int kv_head = task.head - shape.num_q_heads - (is_key ? 0 : shape.num_kv_heads);
  uint16_t* const to =
      (is_key ? args.kv.keys : args.kv.values) +
      ((int64_t{page} * shape.num_kv_heads + kv_head) * 16 + where.position % 16) * shape.head_dim;
  to[task.i0] = Bits16(a, shape.bf16);
  to[task.i1] = Bits16(b, shape.bf16);
}

template <class Format, int R>
__global__ void __launch_bounds__(kProductThreads, R == 1 ? RowStream<Format>::kBlocksAtOnce : 1)
    QkvKernel(QkvArgs args) {
  LetNextBegin();
  const int row0 = blockIdx.y * R;
  const int rows = min(R, args.step.header->num_rows - row0);
  if (rows <= 0) return AwaitPrevious();
  extern __shared__ float xs[];
  const DeviceMatrix& w = args.w;
  const int columns = static_cast<int>(w.columns), padded = static_cast<int>(w.padded_columns);
  const AttentionShape& shape = args.shape;
  const int lane = threadIdx.x % kWarp;
  const int tasks = (shape.num_q_heads + 2 * shape.num_kv_heads) * (shape.head_dim / 2);
  const int first = blockIdx.x * kProductWarps + threadIdx.x / kWarp;
  const int step = gridDim.x * kProductWarps;
  const auto begin_layer = [&] {
    AwaitPrevious();
    if (args.begins_layer && blockIdx.x == 0 && row0 == 0 && threadIdx.x == 0 &&
        (args.step.layers[args.layer].flags & kLayerTrace) != 0) {
      args.step.traces[args.layer].begin = GlobalTimer();
    }
  };
  if constexpr (R == 1) {
    RowStream<Format> stream;
    QkvTask next = DescribeQkv(shape, first);
    stream.Begin(w, first < tasks ? RowsOf(shape, next).a : -1);
    begin_layer();
    StageRows<Format::kElems, 1>(args.in, row0, 1, columns, padded, xs);
    for (int t = first; t < tasks; t += step) {
      const QkvTask task = next;
      const QkvRows which = RowsOf(shape, task);
      next = DescribeQkv(shape, t + step);
      const float a = stream.Dot(w, which.a, which.b, xs);
      const float b = stream.Dot(w, which.b, t + step < tasks ? RowsOf(shape, next).a : -1, xs);
      if (lane == 0) StoreQkv(args, task, row0, a, b);
    }
  } else {
    WeightBatch<Format, 2> batch;
    if (first < tasks) {
      const QkvRows which = RowsOf(shape, DescribeQkv(shape, first));
      batch.Load(w, {which.a, which.b}, lane);
    }
    begin_layer();
    StageRows<Format::kElems, R>(args.in, row0, rows, columns, padded, xs);
    for (int t = first; t < tasks; t += step) {
      const QkvTask task = DescribeQkv(shape, t);
      const QkvRows rows_of = RowsOf(shape, task);
      const int which[2] = {rows_of.a, rows_of.b};
      if (t != first) batch.Load(w, which, lane);
      float acc[2][R];
      WarpDots<Format, 2, R>(w, which, xs, batch, acc);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (lane == r && r < rows) StoreQkv(args, task, row0 + r, acc[0][r], acc[1][r]);
      }
    }
  }
}

std::atomic<bool> early_launch_allowed{true};

}  // namespace

void AllowEarlyLaunch(bool allowed) { early_launch_allowed = allowed; }
bool EarlyLaunchAllowed() { return early_launch_allowed; }

void LaunchProduct(const ProductArgs& args, int max_rows, cudaStream_t stream) {
  ForFormat(args.w.dtype, [&](auto format) {
    ForRowTile(max_rows, [&](auto tile) {
      constexpr int R = decltype(tile)::value;
      const auto kernel = ProductKernel<decltype(format), R>;
      const int shared = static_cast<int>(R * args.w.padded_columns * sizeof(float));
      AllowShared(kernel, shared);
      const int blocks =
          R == 1 ? ProductBlocks(args.w.rows, RowStream<decltype(format)>::kBlocksAtOnce)
                 : ProductBlocks((args.w.rows + 1) / 2);
      const dim3 grid(blocks, (max_rows + R - 1) / R);
      LaunchEarly(kernel, grid, kProductThreads, shared, stream, args.early, args);
    });
  });
}

void LaunchQkv(const QkvArgs& args, int max_rows, cudaStream_t stream) {
  ForFormat(args.w.dtype, [&](auto format) {
    ForRowTile(max_rows, [&](auto tile) {
      constexpr int R = decltype(tile)::value;
      const auto kernel = QkvKernel<decltype(format), R>;
      const int shared = static_cast<int>(R * args.w.padded_columns * sizeof(float));
      AllowShared(kernel, shared);
      const int blocks =
          R == 1 ? ProductBlocks(args.w.rows / 2, RowStream<decltype(format)>::kBlocksAtOnce)
                 : ProductBlocks(args.w.rows / 2);
      const dim3 grid(blocks, (max_rows + R - 1) / R);
      LaunchEarly(kernel, grid, kProductThreads, shared, stream, args.early, args);
    });
  });
}

}  // namespace isotherm::gpu
