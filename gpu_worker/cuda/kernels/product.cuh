#pragma once

#include "gpu_worker/cuda/kernels/formats.cuh"
#include "gpu_worker/cuda/kernels/kernels.h"

// The product of a weight matrix and a few rows: a warp takes kOutputs matrix rows at a time, or,
// with one row of x, streams through them; x lies in shared memory as F32. Bound by reading the
// weights.
namespace isotherm::gpu {

inline constexpr int kProductThreads = 256;
inline constexpr int kProductWarps = kProductThreads / kWarp;

// Shared memory holds x so that the lanes of a warp, each with kElems columns, read 16 bytes side
// by side: the columns' groups of 4 lie in kElems / 4 planes.
template <int kElems>
__device__ inline int StagedIndex(int column, int padded) {
  constexpr int kPlanes = kElems / 4;
  return (column / 4 % kPlanes) * (padded / kPlanes) + column / kElems * 4 + column % 4;
}

// Normed value of a column. `scale` and `shift`: of the row.
__device__ inline float Normed(const NormWeights& norm, float x, int column, float scale,
                               float shift) {
  if (norm.kind == NormOp::kNone) return x;
  float y = (x - shift) * scale * norm.weight[column];
  if (norm.kind == NormOp::kLayer && norm.bias != nullptr) y += norm.bias[column];
  return Round16(y, norm.bf16);
}

struct RowNorm {
  float scale = 1, shift = 0;
};

// By the whole block. scratch: 32 floats.
__device__ inline RowNorm MeasureRow(const NormWeights& norm, const float* x, int columns,
                                     float* scratch) {
  RowNorm out;
  if (norm.kind == NormOp::kNone) return out;
  if (norm.kind == NormOp::kLayer) {
    float sum = 0;
    for (int c = threadIdx.x; c < columns; c += blockDim.x) sum += x[c];
    out.shift = BlockSum(sum, scratch) / static_cast<float>(columns);
  }
  float squares = 0;
  for (int c = threadIdx.x; c < columns; c += blockDim.x) {
    const float d = x[c] - out.shift;
    squares += d * d;
  }
  squares = BlockSum(squares, scratch);
  out.scale = 1.0f / sqrtf(squares / static_cast<float>(columns) + norm.eps);
  return out;
}

// Four neighbouring columns, the first a multiple of 4, at their staged place.
template <int kElems>
__device__ inline float4* Staged4(float* xs, int column, int padded) {
  return reinterpret_cast<float4*>(xs + StagedIndex<kElems>(column, padded));
}

// Rows row0 .. row0 + rows of the input to shared memory, zero in the padding and in rows that are
// not there. Ends with a barrier. Rows of x begin on 16 bytes where columns is a multiple of 4.
template <int kElems, int R>
__device__ inline void StageRows(const ProductInput& in, int row0, int rows, int columns,
                                 int padded, float* xs) {
  __shared__ float scratch[32];
  const int step = 4 * static_cast<int>(blockDim.x);
  for (int r = 0; r < R; ++r) {
    float* const to = xs + r * padded;
    const int from = in.gather != nullptr && r < rows ? in.gather[row0 + r] : row0 + r;
    const float* const x = in.x + from * in.stride;
    const bool aligned = (in.stride % 4) == 0;
    float sum = 0, squares = 0;
#pragma unroll 4
    for (int c = 4 * static_cast<int>(threadIdx.x); c < padded; c += step) {
      float4 value = {0, 0, 0, 0};
      if (r < rows) {
        if (aligned && c + 4 <= columns) {
          value = *reinterpret_cast<const float4*>(x + c);
        } else {
          value.x = c < columns ? x[c] : 0.0f;
          value.y = c + 1 < columns ? x[c + 1] : 0.0f;
          value.z = c + 2 < columns ? x[c + 2] : 0.0f;
          value.w = c + 3 < columns ? x[c + 3] : 0.0f;
        }
      }
      *Staged4<kElems>(to, c, padded) = value;
      sum += value.x + value.y + value.z + value.w;
      squares += value.x * value.x + value.y * value.y + value.z * value.z + value.w * value.w;
    }
    if (in.norm.kind == NormOp::kNone || r >= rows) continue;
    RowNorm norm;
    if (in.norm.kind == NormOp::kLayer) {
      norm.shift = BlockSum(sum, scratch) / static_cast<float>(columns);
      squares = 0;
      for (int c = threadIdx.x; c < columns; c += blockDim.x) {
        const float d = x[c] - norm.shift;
        squares += d * d;
      }
    }
    squares = BlockSum(squares, scratch);
    norm.scale = 1.0f / sqrtf(squares / static_cast<float>(columns) + in.norm.eps);
    // Each thread norms what it staged itself.
    for (int c = 4 * static_cast<int>(threadIdx.x); c < padded; c += step) {
      float4* const at = Staged4<kElems>(to, c, padded);
      float4 value = *at;
      float* const v = reinterpret_cast<float*>(&value);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        v[i] = c + i < columns ? Normed(in.norm, v[i], c + i, norm.scale, norm.shift) : 0.0f;
      *at = value;
    }
  }
  __syncthreads();
}

// What a warp's first loads of a product fetch: kUnroll pieces of each of its matrix rows.
template <class Format, int kOutputs>
struct WeightBatch {
  static constexpr int kUnroll = kOutputs >= 4 ? 2 : kOutputs == 1 ? 8 : 4;
  uint4 raw[kUnroll][kOutputs];
  uint16_t scale[kUnroll][kOutputs];

  __device__ inline void Load(const DeviceMatrix& w, const int (&rows)[kOutputs], int c0) {
    const int padded = static_cast<int>(w.padded_columns);
    const int chunks = padded / Format::kElems;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int c = c0 + u * kWarp;
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) {
        const auto* const data = reinterpret_cast<const uint4*>(
            static_cast<const unsigned char*>(w.data) + rows[i] * Format::RowBytes(padded));
        raw[u][i] = c < chunks ? __ldcs(data + c) : uint4{0, 0, 0, 0};
        if constexpr (Format::kScaled) {
          scale[u][i] =
              c < chunks
                  ? __ldg(w.scales + int64_t{rows[i]} * (padded / 32) + c * Format::kElems / 32)
                  : uint16_t{0};
        }
      }
    }
  }
};

// acc[i][r] = weights row i . x row r, in every lane. rows: the matrix rows, each inside the
// matrix; `batch`: their first pieces, loaded from the lane's own on.
template <class Format, int kOutputs, int R>
__device__ inline void WarpDots(const DeviceMatrix& w, const int (&rows)[kOutputs], const float* xs,
                                WeightBatch<Format, kOutputs>& batch, float (&acc)[kOutputs][R]) {
  using Batch = WeightBatch<Format, kOutputs>;
  const int lane = threadIdx.x % kWarp;
  const int padded = static_cast<int>(w.padded_columns);
  const int chunks = padded / Format::kElems;
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) {
#pragma unroll
    for (int r = 0; r < R; ++r) acc[i][r] = 0;
  }
  const int plane = padded / (Format::kElems / 4);
  for (int c0 = lane; c0 < chunks; c0 += kWarp * Batch::kUnroll) {
    if (c0 != lane) batch.Load(w, rows, c0);
#pragma unroll
    for (int u = 0; u < Batch::kUnroll; ++u) {
      const int c = c0 + u * kWarp;
      if (c >= chunks) break;
      float decoded[kOutputs][Format::kElems];
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) Format::Decode(batch.raw[u][i], decoded[i]);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        float dot[kOutputs] = {};
#pragma unroll
        for (int p = 0; p < Format::kElems / 4; ++p) {
          const float4 x = *reinterpret_cast<const float4*>(xs + r * padded + p * plane + c * 4);
#pragma unroll
          for (int i = 0; i < kOutputs; ++i) {
            dot[i] += decoded[i][4 * p] * x.x + decoded[i][4 * p + 1] * x.y +
                      decoded[i][4 * p + 2] * x.z + decoded[i][4 * p + 3] * x.w;
          }
        }
#pragma unroll
        for (int i = 0; i < kOutputs; ++i) {
          if constexpr (Format::kScaled) {
            acc[i][r] += __half2float(__ushort_as_half(batch.scale[u][i])) * dot[i];
          } else {
            acc[i][r] += dot[i];
          }
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) {
#pragma unroll
    for (int r = 0; r < R; ++r) acc[i][r] = WarpSum(acc[i][r]);
  }
}

// A warp's way through matrix rows that it multiplies with one row of x, one behind the other:
// while it works on some pieces the next are under way, those of the next matrix row, too. On an
// H200 this took 1 to 21 % less time than batches of two rows (product_benchmark).
template <class Format>
class RowStream {
 public:
  // Blocks that a multiprocessor holds at once: registers for no more.
  static constexpr int kBlocksAtOnce = Format::kScaled ? 3 : 2;

  // Fetches the first pieces of a matrix row; below 0: there is none.
  __device__ inline void Begin(const DeviceMatrix& w, int row) { Load<0>(w, row, 0); }

  // w[row] . x, in every lane. `row` is the one of Begin, or `next` of the call before; below 0:
  // none follows.
  __device__ inline float Dot(const DeviceMatrix& w, int row, int next, const float* xs) {
    const int pieces = Pieces(w);
    float sum = 0;
    for (int piece = 0; piece < pieces; piece += 2) {
      Advance<0>(w, row, next, piece, pieces);
      sum += Multiply<0>(w, piece, xs);
      if (piece + 1 == pieces) break;
      Advance<1>(w, row, next, piece + 1, pieces);
      sum += Multiply<1>(w, piece + 1, xs);
    }
    if (pieces % 2 != 0) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        raw_[0][u] = raw_[1][u];
        scale_[0][u] = scale_[1][u];
      }
    }
    return WarpSum(sum);
  }

 private:
  static constexpr int kUnroll = Format::kScaled ? 4 : 8;
  static constexpr int kStep = kUnroll * kWarp;  // loads of a warp for a piece

  __device__ static int Chunks(const DeviceMatrix& w) {
    return static_cast<int>(w.padded_columns) / Format::kElems;
  }
  __device__ static int Pieces(const DeviceMatrix& w) { return (Chunks(w) + kStep - 1) / kStep; }

  template <int kInto>
  __device__ inline void Load(const DeviceMatrix& w, int row, int piece) {
    const int padded = static_cast<int>(w.padded_columns), chunks = row < 0 ? 0 : Chunks(w);
    const auto* const data = reinterpret_cast<const uint4*>(
        static_cast<const unsigned char*>(w.data) + row * Format::RowBytes(padded));
    const int first = piece * kStep + static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int c = first + u * kWarp;
      raw_[kInto][u] = c < chunks ? __ldcs(data + c) : uint4{0, 0, 0, 0};
      if constexpr (Format::kScaled) {
        scale_[kInto][u] =
            c < chunks ? __ldg(w.scales + int64_t{row} * (padded / 32) + c * Format::kElems / 32)
                       : uint16_t{0};
      }
    }
  }
  // Fetches what comes behind `piece` of `row`.
  template <int kNow>
  __device__ inline void Advance(const DeviceMatrix& w, int row, int next, int piece, int pieces) {
    const bool same = piece + 1 < pieces;
    Load<1 - kNow>(w, same ? row : next, same ? piece + 1 : 0);
  }
  template <int kNow>
  __device__ inline float Multiply(const DeviceMatrix& w, int piece, const float* xs) const {
    const int chunks = Chunks(w);
    const int plane = static_cast<int>(w.padded_columns) / (Format::kElems / 4);
    const int first = piece * kStep + static_cast<int>(threadIdx.x) % kWarp;
    float sum = 0;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int c = first + u * kWarp;
      if (c >= chunks) break;
      float decoded[Format::kElems], dot = 0;
      Format::Decode(raw_[kNow][u], decoded);
#pragma unroll
      for (int p = 0; p < Format::kElems / 4; ++p) {
        const float4 x = *reinterpret_cast<const float4*>(xs + p * plane + c * 4);
        dot += decoded[4 * p] * x.x + decoded[4 * p + 1] * x.y + decoded[4 * p + 2] * x.z +
               decoded[4 * p + 3] * x.w;
      }
      if constexpr (Format::kScaled) {
        sum += __half2float(__ushort_as_half(scale_[kNow][u])) * dot;
      } else {
        sum += dot;
      }
    }
    return sum;
  }

  uint4 raw_[2][kUnroll];
  uint16_t scale_[2][kUnroll];
};

// Calls launch(Format()) for the matrix's type.
template <class Launch>
void ForFormat(DType dtype, const Launch& launch) {
  switch (dtype) {
    case DType::kF32:
      return launch(F32Format());
    case DType::kF16:
      return launch(F16Format());
    case DType::kBF16:
      return launch(Bf16Format());
    case DType::kQ8_0:
      return launch(Q8Format());
    default:
      return launch(Q4Format());
  }
}

// Rows that one block takes: all of a small batch, else tiles of 4.
template <class Launch>
void ForRowTile(int max_rows, const Launch& launch) {
  if (max_rows <= 1) return launch(std::integral_constant<int, 1>());
  if (max_rows <= 2) return launch(std::integral_constant<int, 2>());
  return launch(std::integral_constant<int, 4>());
}

// Lets `kernel` use `bytes` of shared memory beside what it declares itself; 48 KiB of both
// together need no leave.
template <class Kernel>
void AllowShared(Kernel kernel, int bytes) {
  if (bytes > 16 * 1024)
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

// Whether kernels here wait by themselves for the one before: compiled for it, on a device that
// can.
template <class Kernel>
bool CanLaunchEarly(Kernel kernel) {
  static const bool can = [&] {
    int device = 0, major = 0;
    cudaFuncAttributes attributes;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) ==
               cudaSuccess &&
           cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && major >= 9 &&
           attributes.ptxVersion >= 90;
  }();
  return can;
}

// Launches a kernel that calls AwaitPrevious. `early`: it may begin before the one ahead of it in
// the stream has ended.
template <class... Args>
void LaunchEarly(void (*kernel)(Args...), dim3 grid, int threads, int shared, cudaStream_t stream,
                 bool early, const Args&... args) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = early && EarlyLaunchAllowed() && CanLaunchEarly(kernel) ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, args...);
}

inline constexpr int kMultiprocessors = 132;  // grids are sized for it; any number is right

// As many blocks as fit at once or fewer, so that every warp takes the same number of tasks.
inline int ProductBlocks(int64_t tasks, int blocks_at_once = 3) {
  const int64_t most = int64_t{blocks_at_once} * kMultiprocessors * kProductWarps;
  const int64_t each = (tasks + most - 1) / most;  // tasks of a warp
  return static_cast<int>((tasks + kProductWarps * each - 1) / (kProductWarps * each));
}

}  // namespace isotherm::gpu
