#include <type_traits>

#include "gpu_worker/cuda/kernels/product.cuh"

namespace isotherm::gpu {
namespace {

// The last block of the grid's x makes z of its rows, the others share out fc1.
template <class Format, int R>
__global__ void __launch_bounds__(kProductThreads) PredictKernel(PredictArgs args) {
  const int row0 = blockIdx.y * R;
  const int rows = min(R, args.step.header->num_rows - row0);
  if (rows <= 0) return;
  if (blockIdx.x == 0 && row0 == 0 && threadIdx.x == 0 &&
      (args.step.layers[args.layer].flags & kLayerTrace) != 0) {
    LayerTrace& trace = args.step.traces[args.layer];
    trace.predict = GlobalTimer();
    if (args.begins_layer) trace.begin = trace.predict;
  }
  if (blockIdx.x == gridDim.x - 1) {
    __shared__ float scratch[32];
    for (int r = 0; r < rows; ++r) {
      const float* const x = args.x + int64_t{row0 + r} * args.model_dim;
      uint16_t* const z = args.z + int64_t{row0 + r} * args.model_dim;
      const RowNorm norm = MeasureRow(args.norm, x, args.model_dim, scratch);
      for (int c = threadIdx.x; c < args.model_dim; c += blockDim.x)
        z[c] = Bits16(Normed(args.norm, x[c], c, norm.scale, norm.shift), args.norm.bf16);
    }
    return;
  }
  extern __shared__ float xs[];
  const DeviceMatrix& w = args.fc1;
  const int padded = static_cast<int>(w.padded_columns);
  const ProductInput in{.x = args.x, .stride = args.model_dim};
  StageRows<Format::kElems, R>(in, row0, rows, static_cast<int>(w.columns), padded, xs);
  const int lane = threadIdx.x % kWarp;
  const int matrix_rows = static_cast<int>(w.rows);
  for (int task = blockIdx.x * kProductWarps + threadIdx.x / kWarp; task < matrix_rows;
       task += (gridDim.x - 1) * kProductWarps) {
    const int which[1] = {task};
    float acc[1][R];
    WarpDots<Format, 1, R>(w, which, xs, acc);
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
      const int shared = static_cast<int>(R * args.fc1.padded_columns * sizeof(float));
      AllowShared(kernel, shared);
      const int blocks = args.fc1.rows == 0 ? 0 : ProductBlocks(args.fc1.rows);
      const dim3 grid(blocks + 1, (max_rows + R - 1) / R);
      kernel<<<grid, kProductThreads, shared, stream>>>(args);
    });
  });
}

}  // namespace isotherm::gpu
