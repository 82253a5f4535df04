#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "bench/probe/cuda/cuda_figures.h"
#include "bench/probe/cuda/cuda_util.h"

namespace isotherm::probe {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

__host__ __device__ inline uint32_t Scramble(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// Weights in [-1, 1]; the same on host and device.
__host__ __device__ inline float WeightAt(uint32_t i) {
  return static_cast<float>(Scramble(i) % 255) / 127.0f - 1.0f;
}

__global__ void FillHalves(__half* w, int64_t count) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    w[i] = __float2half(WeightAt(static_cast<uint32_t>(i)));
  }
}

__global__ void FillBytes(int8_t* q, int64_t count) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    q[i] = static_cast<int8_t>(static_cast<int>(Scramble(static_cast<uint32_t>(i)) % 255) - 127);
  }
}

__device__ float AddPairs(const uint4& w, const __half* x, float sum) {
  const __half2* const pairs = reinterpret_cast<const __half2*>(&w);
  const uint4 xv = *reinterpret_cast<const uint4*>(x);
  const __half2* const xs = reinterpret_cast<const __half2*>(&xv);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float2 a = __half22float2(pairs[k]), b = __half22float2(xs[k]);
    sum = fmaf(a.x, b.x, sum);
    sum = fmaf(a.y, b.y, sum);
  }
  return sum;
}

// y[row] = w[row] . x; kWarpsPerRow warps share a row. stride and columns are multiples of 8.
template <int kWarpsPerRow>
__global__ void GemvHalf(const __half* w, int64_t stride, const __half* x, int rows, int columns,
                         float* y) {
  __shared__ float sums[kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = blockIdx.x * (kWarps / kWarpsPerRow) + warp / kWarpsPerRow;
  float sum = 0;
  if (row < rows) {
    const __half* const from = w + row * stride;
#pragma unroll 4
    for (int c = (warp % kWarpsPerRow * 32 + lane) * 8; c < columns; c += kWarpsPerRow * 256) {
      sum = AddPairs(__ldcs(reinterpret_cast<const uint4*>(from + c)), x + c, sum);
    }
  }
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(~0u, sum, offset);
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  if (threadIdx.x < kWarps / kWarpsPerRow) {
    float total = 0;
    for (int i = 0; i < kWarpsPerRow; ++i) total += sums[threadIdx.x * kWarpsPerRow + i];
    const int out = blockIdx.x * (kWarps / kWarpsPerRow) + threadIdx.x;
    if (out < rows) y[out] = total;
  }
}

// The same with signed bytes and one F16 scale (here the same for all) for each 32, apart from
// them: Q8_0 as a device would keep it.
template <int kWarpsPerRow>
__global__ void GemvBytes(const int8_t* q, const __half* scales, int64_t stride, const __half* x,
                          int rows, int columns, float* y) {
  __shared__ float sums[kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = blockIdx.x * (kWarps / kWarpsPerRow) + warp / kWarpsPerRow;
  float sum = 0;
  if (row < rows) {
#pragma unroll 4
    for (int c = (warp % kWarpsPerRow * 32 + lane) * 16; c < columns; c += kWarpsPerRow * 512) {
      const uint4 w = __ldcs(reinterpret_cast<const uint4*>(q + row * stride + c));
      const int8_t* const bytes = reinterpret_cast<const int8_t*>(&w);
      const uint4 xv[2] = {*reinterpret_cast<const uint4*>(x + c),
                           *reinterpret_cast<const uint4*>(x + c + 8)};
      const __half2* const xs = reinterpret_cast<const __half2*>(xv);
      float part = 0;
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const float2 b = __half22float2(xs[k]);
        part = fmaf(static_cast<float>(bytes[2 * k]), b.x, part);
        part = fmaf(static_cast<float>(bytes[2 * k + 1]), b.y, part);
      }
      sum = fmaf(part, __half2float(scales[(row * stride + c) / 32]), sum);
    }
  }
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(~0u, sum, offset);
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  if (threadIdx.x < kWarps / kWarpsPerRow) {
    float total = 0;
    for (int i = 0; i < kWarpsPerRow; ++i) total += sums[threadIdx.x * kWarpsPerRow + i];
    const int out = blockIdx.x * (kWarps / kWarpsPerRow) + threadIdx.x;
    if (out < rows) y[out] = total;
  }
}

struct Shape {
  int rows, columns;
};

constexpr int64_t kPoolBytes = int64_t{1} << 30;  // many times the L2

template <int kWarpsPerRow>
void Measure(const Shape& shape, bool bytes, void* pool, const __half* scales, const __half* x,
             float* y) {
  const int64_t stride = (shape.columns + 31) / 32 * 32;
  const int64_t element = bytes ? 1 : 2;
  const int64_t matrix = stride * shape.rows;
  const int copies = static_cast<int>(kPoolBytes / (matrix * element));
  const int rows_per_block = kWarps / kWarpsPerRow;
  const int blocks = (shape.rows + rows_per_block - 1) / rows_per_block;
  // 1,023 columns are padded to 1,024: x is zero there.
  const int columns = static_cast<int>(stride);
  const auto enqueue = [&](int copy, cudaStream_t stream) {
    if (bytes) {
      GemvBytes<kWarpsPerRow><<<blocks, kThreads, 0, stream>>>(
          static_cast<const int8_t*>(pool) + copy * matrix, scales + copy * matrix / 32, stride, x,
          shape.rows, columns, y);
    } else {
      GemvHalf<kWarpsPerRow><<<blocks, kThreads, 0, stream>>>(
          static_cast<const __half*>(pool) + copy * matrix, stride, x, shape.rows, columns, y);
    }
  };
  enqueue(0, nullptr);
  PROBE_CUDA(cudaDeviceSynchronize());
  const auto got = CopyToHost(y, shape.rows);
  const auto xs = CopyToHost(x, columns);
  bool right = true;
  for (int row = 0; row < shape.rows; row += 37) {
    double want = 0, magnitude = 0;
    for (int c = 0; c < columns; ++c) {
      const auto i = static_cast<uint32_t>(row * stride + c);
      const double w = bytes ? (static_cast<int>(Scramble(i) % 255) - 127) / 128.0
                             : static_cast<double>(__half2float(__float2half(WeightAt(i))));
      const double term = w * static_cast<double>(__half2float(xs[static_cast<size_t>(c)]));
      want += term;
      magnitude += std::abs(term);
    }
    right &= std::abs(got[static_cast<size_t>(row)] - want) <= magnitude * 1e-4;
  }
  const cudaGraphExec_t graph = CaptureGraph([&](cudaStream_t stream) {
    for (int copy = 0; copy < copies; ++copy) enqueue(copy, stream);
  });
  double best = 1e9;
  for (int pass = 0; pass < 5; ++pass) {
    best = std::min(best,
                    DeviceSeconds(nullptr, [&] { PROBE_CUDA(cudaGraphLaunch(graph, nullptr)); }));
  }
  PROBE_CUDA(cudaGraphExecDestroy(graph));
  Line line("gemv");
  line.Set("rows", shape.rows).Set("columns", shape.columns);
  line.Set("type", bytes ? "q8_0, scales apart" : "f16").Set("warps_per_row", kWarpsPerRow);
  if (!right) {
    line.Set("error", "wrong result");
    return;
  }
  const double bytes_read = static_cast<double>(matrix) * (bytes ? 1 + 2.0 / 32 : 2);
  line.Set("us", best * 1e6 / copies).Set("gb_s", bytes_read * copies / best / 1e9);
}

}  // namespace

void Gemv() {
  void* const pool = DeviceArray<char>(kPoolBytes);
  __half* const x = DeviceArray<__half>(16384);
  float* const y = DeviceArray<float>(16384);
  __half* const scales = DeviceArray<__half>(kPoolBytes / 32);
  {
    std::vector<__half> all(static_cast<size_t>(kPoolBytes / 32), __float2half(1.0f / 128));
    CopyToDevice(scales, all);
  }
  for (const Shape shape : {Shape{4096, 4096}, Shape{12288, 4096}, Shape{11008, 1023}}) {
    std::vector<__half> xs(16384, __float2half(0.0f));
    for (int c = 0; c < shape.columns; ++c) {
      xs[static_cast<size_t>(c)] = __float2half(std::sin(static_cast<float>(c)));
    }
    CopyToDevice(x, xs);
    for (const bool bytes : {false, true}) {
      if (bytes) {
        FillBytes<<<1024, 256>>>(static_cast<int8_t*>(pool), kPoolBytes);
      } else {
        FillHalves<<<1024, 256>>>(static_cast<__half*>(pool), kPoolBytes / 2);
      }
      Measure<1>(shape, bytes, pool, scales, x, y);
      Measure<2>(shape, bytes, pool, scales, x, y);
      Measure<4>(shape, bytes, pool, scales, x, y);
      Measure<8>(shape, bytes, pool, scales, x, y);
    }
  }
}

}  // namespace isotherm::probe
