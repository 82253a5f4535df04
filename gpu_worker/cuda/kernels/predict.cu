#include <type_traits>

#include "gpu_worker/cuda/kernels/post.cuh"
#include "gpu_worker/cuda/kernels/product.cuh"

namespace isotherm::gpu {
namespace {

// Where the layer's z goes in the slot that it will be posted with; null when nothing is posted.
__device__ uint16_t* SlotZ(const PredictArgs& args) {
  unsigned char* const slot = SlotOf(args.step, args.layer);
  if (slot == nullptr) return nullptr;
  return reinterpret_cast<uint16_t*>(slot + args.step.header->ring.z_offset);
}

// Each block makes a slice of its rows' z, for this side and into the slot, and its share of fc1.
template <class Format, int R>
__global__ void __launch_bounds__(kProductThreads) PredictKernel(PredictArgs args) {
  LetNextBegin();
  const int row0 = blockIdx.y * R;
  const int rows = min(R, args.step.header->num_rows - row0);
  if (rows <= 0) return AwaitPrevious();
  extern __shared__ float xs[];
  __shared__ float scratch[32];
  const DeviceMatrix& w = args.fc1;
  const int padded = static_cast<int>(w.padded_columns);
  // In steps of 8 columns, so that what crosses PCIe is whole pieces of 16 bytes.
  const int steps = (args.model_dim + 7) / 8;
  const int each = (steps + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
  const int first = static_cast<int>(blockIdx.x) * each * 8;
  const int last = min(args.model_dim, first + each * 8);
  const int lane = threadIdx.x % kWarp;
  const int matrix_rows = static_cast<int>(w.rows);
  const int first_task = static_cast<int>(blockIdx.x) * kProductWarps + threadIdx.x / kWarp;
  WeightBatch<Format, 1> batch;
  if (first_task < matrix_rows) batch.Load(w, {first_task}, lane);
  AwaitPrevious();
  if (blockIdx.x == 0 && row0 == 0 && threadIdx.x == 0 &&
      (args.step.layers[args.layer].flags & kLayerTrace) != 0) {
    LayerTrace& trace = args.step.traces[args.layer];
    trace.predict = GlobalTimer();
    if (args.begins_layer) trace.begin = trace.predict;
  }
  uint16_t* const slot = args.posts ? SlotZ(args) : nullptr;
  for (int r = 0; r < rows; ++r) {
    const int64_t at = int64_t{row0 + r} * args.model_dim;
    const float* const x = args.x + at;
    float* const to = xs + r * padded;
    float sum = 0, squares = 0;
#pragma unroll 4
    for (int c = 4 * static_cast<int>(threadIdx.x); c < max(padded, args.model_dim);
         c += 4 * kProductThreads) {
      float4 value = {0, 0, 0, 0};
      if (c < args.model_dim) value = *reinterpret_cast<const float4*>(x + c);
      if (c < padded) *Staged4<Format::kElems>(to, c, padded) = value;
      sum += value.x + value.y + value.z + value.w;
      squares += value.x * value.x + value.y * value.y + value.z * value.z + value.w * value.w;
    }
    RowNorm norm;
    if (args.norm.kind == NormOp::kLayer) {
      norm.shift = BlockSum(sum, scratch) / static_cast<float>(args.model_dim);
      squares = 0;
      for (int c = threadIdx.x; c < args.model_dim; c += kProductThreads) {
        const float d = x[c] - norm.shift;
        squares += d * d;
      }
    }
    squares = BlockSum(squares, scratch);
    norm.scale = 1.0f / sqrtf(squares / static_cast<float>(args.model_dim) + args.norm.eps);
    for (int c = first + static_cast<int>(threadIdx.x); c < last; c += kProductThreads) {
      const uint16_t z = Bits16(Normed(args.norm, x[c], c, norm.scale, norm.shift), args.norm.bf16);
      args.z[at + c] = z;
      if (slot != nullptr) slot[at + c] = z;
    }
  }
  for (int r = rows; r < R; ++r) {
    for (int c = threadIdx.x; c < padded; c += kProductThreads) xs[r * padded + c] = 0;
  }
  __syncthreads();
  for (int task = first_task; task < matrix_rows; task += gridDim.x * kProductWarps) {
    const int which[1] = {task};
    if (task != first_task) batch.Load(w, which, lane);
    float acc[1][R];
    WarpDots<Format, 1, R>(w, which, xs, batch, acc);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (lane == r && r < rows) {
        args.hidden[int64_t{row0 + r} * args.hidden_stride + task] =
            acc[0][r] < 0 ? 0.0f : acc[0][r];
      }
    }
  }
}

}  // namespace

void LaunchPredict(const PredictArgs& args, int max_rows, cudaStream_t stream) {
  ForFormat(args.fc1.dtype, [&](auto format) {
    ForRowTile(max_rows, [&](auto tile) {
      constexpr int R = decltype(tile)::value;
      const auto kernel = PredictKernel<decltype(format), R>;
      // Without a predictor nothing but z is made, and no row of x is kept.
      const int shared = static_cast<int>(R * args.fc1.padded_columns * sizeof(float));
      AllowShared(kernel, shared);
      const int blocks = args.fc1.rows == 0 ? 8 : ProductBlocks(args.fc1.rows);
      const dim3 grid(blocks, (max_rows + R - 1) / R);
      LaunchEarly(kernel, grid, kProductThreads, shared, stream, true, args);
    });
  });
}

}  // namespace isotherm::gpu
