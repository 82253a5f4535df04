#include <atomic>
#include <type_traits>

#include "gpu_worker/cuda/kernels/product.cuh"

namespace isotherm::gpu {
namespace {

template <class Format, int R>
__global__ void __launch_bounds__(kProductThreads, R == 1 ? kBlocksAtOnce : 1)
    ProductKernel(ProductArgs args) {
  LetNextBegin();
  const int row0 = blockIdx.y * R;
  const int rows = min(R, *args.in.num_rows - row0);
  if (rows <= 0) return AwaitPrevious();
  extern __shared__ float xs[];
  const DeviceMatrix& w = args.w;
  const int padded = static_cast<int>(w.padded_columns);
  const int lane = threadIdx.x % kWarp;
  const int matrix_rows = static_cast<int>(w.rows);
  const int tasks = (matrix_rows + 1) / 2;
  const int first = blockIdx.x * kProductWarps + threadIdx.x / kWarp;
  // Weights wait for nobody: their first pieces are under way while x is staged.
  WeightBatch<Format, 2> batch;
  if (first < tasks) batch.Load(w, {2 * first, min(2 * first + 1, matrix_rows - 1)}, lane);
  AwaitPrevious();
  StageRows<Format::kElems, R>(args.in, row0, rows, static_cast<int>(w.columns), padded, xs);
  for (int task = first; task < tasks; task += gridDim.x * kProductWarps) {
    const int which[2] = {2 * task, min(2 * task + 1, matrix_rows - 1)};
    if (task != first) batch.Load(w, which, lane);
    float acc[2][R];
    WarpDots<Format, 2, R>(w, which, xs, batch, acc);
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (lane != 2 * r + i || r >= rows || 2 * task + i >= matrix_rows) continue;
        float* const y = args.y + (row0 + r) * args.y_stride + 2 * task + i;
        float value = acc[i][r];
        if (args.bias != nullptr) value += args.bias[2 * task + i];
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

template <class Format, int R>
__global__ void __launch_bounds__(kProductThreads, R == 1 ? kBlocksAtOnce : 1)
    QkvKernel(QkvArgs args) {
  LetNextBegin();
  const int row0 = blockIdx.y * R;
  const int rows = min(R, args.step.header->num_rows - row0);
  if (rows <= 0) return AwaitPrevious();
  extern __shared__ float xs[];
  const DeviceMatrix& w = args.w;
  const int padded = static_cast<int>(w.padded_columns);
  const AttentionShape& shape = args.shape;
  const int lane = threadIdx.x % kWarp;
  const int head_dim = shape.head_dim;
  const int q_dim = shape.num_q_heads * head_dim;
  const int tasks = (shape.num_q_heads + 2 * shape.num_kv_heads) * (head_dim / 2);
  const int first = blockIdx.x * kProductWarps + threadIdx.x / kWarp;
  WeightBatch<Format, 2> batch;
  if (first < tasks) {
    const QkvTask task = DescribeQkv(shape, first);
    batch.Load(w, {task.head * head_dim + task.i0, task.head * head_dim + task.i1}, lane);
  }
  AwaitPrevious();
  if (args.begins_layer && blockIdx.x == 0 && row0 == 0 && threadIdx.x == 0 &&
      (args.step.layers[args.layer].flags & kLayerTrace) != 0) {
    args.step.traces[args.layer].begin = GlobalTimer();
  }
  StageRows<Format::kElems, R>(args.in, row0, rows, static_cast<int>(w.columns), padded, xs);
  for (int t = first; t < tasks; t += gridDim.x * kProductWarps) {
    const QkvTask task = DescribeQkv(shape, t);
    const int which[2] = {task.head * head_dim + task.i0, task.head * head_dim + task.i1};
    if (t != first) batch.Load(w, which, lane);
    float acc[2][R];
    WarpDots<Format, 2, R>(w, which, xs, batch, acc);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (lane != r || r >= rows) continue;
      const int row = row0 + r;
      float a = acc[0][r], b = acc[1][r];
      if (args.bias != nullptr) {
        a += args.bias[which[0]];
        b += args.bias[which[1]];
      }
      if (task.pair >= 0) {
        const float cos = args.rope_cos[int64_t{row} * shape.rope_half + task.pair];
        const float sin = args.rope_sin[int64_t{row} * shape.rope_half + task.pair];
        const float rotated = a * cos - b * sin;
        b = a * sin + b * cos;
        a = rotated;
      }
      if (task.head < shape.num_q_heads) {
        float* const q = args.q + int64_t{row} * q_dim + task.head * head_dim;
        q[task.i0] = a;
        q[task.i1] = b;
        continue;
      }
      const StepRow& where = args.step.rows[row];
      const int page = args.step.page_tables[int64_t{where.table} * args.step.header->max_pages +
                                             where.position / 16];
      const bool is_key = task.head < shape.num_q_heads + shape.num_kv_heads;
      const int kv_head = task.head - shape.num_q_heads - (is_key ? 0 : shape.num_kv_heads);
      uint16_t* const to =
          (is_key ? args.kv.keys : args.kv.values) +
          ((int64_t{page} * shape.num_kv_heads + kv_head) * 16 + where.position % 16) * head_dim;
      to[task.i0] = Bits16(a, shape.bf16);
      to[task.i1] = Bits16(b, shape.bf16);
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
      const dim3 grid(ProductBlocks((args.w.rows + 1) / 2), (max_rows + R - 1) / R);
      LaunchEarly(kernel, args, grid, kProductThreads, shared, stream, args.early);
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
      const dim3 grid(ProductBlocks(args.w.rows / 2), (max_rows + R - 1) / R);
      LaunchEarly(kernel, args, grid, kProductThreads, shared, stream, args.early);
    });
  });
}

}  // namespace isotherm::gpu
