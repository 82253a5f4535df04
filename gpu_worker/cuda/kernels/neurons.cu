#include <algorithm>
#include <type_traits>

#include "gpu_worker/cuda/kernels/product.cuh"

// a[n] = act(gate[n] . z) * (up[n] . z), sum of a[n] * down[n, :], over the active neurons of this
// side. A block takes every gridDim.x-th candidate, a warp one neuron's dots at a time, then all
// threads the down rows by columns. Its sums go to a buffer of its own, so that the order of
// additions is the same in every run.
namespace isotherm::gpu {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int kCandidates = kThreads;  // looked at together
constexpr int kColumns = 8;            // of a thread in one column tile
constexpr int kTile = kThreads * kColumns;

__device__ inline float Activate(float v, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return v < 0 ? 0.0f : v;  // a NaN stays
    case Activation::kSilu:
      return v / (1.0f + expf(-v));
    default:
      return 0.5f * v * (1.0f + erff(v * 0.70710678118654752f));
  }
}

// Keeps the order: where this thread's element goes if it stays; *count becomes how many stay.
// scratch: kWarps + 1 ints. Ends with a barrier.
__device__ inline int Compact(bool stays, int* scratch, int* count) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const uint32_t ballot = __ballot_sync(0xffffffffu, stays);
  if (lane == 0) scratch[warp] = __popc(ballot);
  __syncthreads();
  int before = 0, total = 0;
  for (int w = 0; w < kWarps; ++w) {
    before += w < warp ? scratch[w] : 0;
    total += scratch[w];
  }
  __syncthreads();
  *count = total;
  return before + __popc(ballot & ((1u << lane) - 1));
}

template <class Format, int R>
__device__ inline void RowDot(const unsigned char* row, int dim, const float* zs, float (&acc)[R]) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int r = 0; r < R; ++r) acc[r] = 0;
  const int plane = dim / 2;
  constexpr int kUnroll = 8;
  for (int c0 = lane * 8; c0 < dim; c0 += kWarp * 8 * kUnroll) {
    typename Format::Raw8 raw[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int c = c0 + u * kWarp * 8;
      if (c < dim) raw[u] = Format::Load8(row, c);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int c = c0 + u * kWarp * 8;
      if (c >= dim) break;
      float w[8];
      Format::Decode8(raw[u], c, w);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const float4 a = *reinterpret_cast<const float4*>(zs + r * dim + c / 2);
        const float4 b = *reinterpret_cast<const float4*>(zs + r * dim + plane + c / 2);
        acc[r] += w[0] * a.x + w[1] * a.y + w[2] * a.z + w[3] * a.w + w[4] * b.x + w[5] * b.y +
                  w[6] * b.z + w[7] * b.w;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) acc[r] = WarpSum(acc[r]);
}

template <class Format, int R, int kTiles>
__global__ void __launch_bounds__(kThreads) NeuronsKernel(NeuronsArgs args) {
  const StepHeader& header = *args.step.header;
  const int row0 = blockIdx.y * R;
  const int rows = min(R, header.num_rows - row0);
  if (rows <= 0) return;
  const LayerStep& layer = args.step.layers[args.layer];
  const LayerTable& table = header.tables[args.layer];
  StepState& state = *args.step.state;
  const DeviceBundles& bundles = args.bundles;
  const int dim = static_cast<int>(bundles.model_dim);
  const int words = (args.num_neurons + 63) / 64;

  // Candidates: the hot list, or the ids from the cut on.
  int first = 0, candidates = table.num_hot;
  const unsigned char* source = args.pool;
  if (args.streamed) {
    const bool to_cpu = header.ring.base != nullptr && (layer.flags & kLayerGpuOnly) == 0;
    first = to_cpu ? layer.cut : 0;
    candidates = args.num_neurons - first;
    source = header.arena != nullptr ? header.arena[args.layer] : nullptr;
  }

  extern __shared__ float zs[];  // [R][dim], columns staged as for a product of 8 elements
  __shared__ int list[kCandidates], slots[kCandidates];
  __shared__ uint32_t masks[kCandidates];
  __shared__ float values[kCandidates][R];
  __shared__ int scratch[kWarps];
  for (int r = 0; r < R; ++r) {
    for (int c = threadIdx.x; c < dim; c += kThreads) {
      zs[r * dim + StagedIndex<8>(c, dim)] =
          r < rows ? From16(args.z[int64_t{row0 + r} * dim + c], args.bf16) : 0.0f;
    }
  }
  const uint64_t seed = HashLayerSeed(static_cast<uint64_t>(header.epoch),
                                      static_cast<uint64_t>(args.layer));
  float acc[R][kTiles][kColumns];
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) acc[r][t][i] = 0;
    }
  }
  unsigned long long hash = 0;
  unsigned int open = 0;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int step = static_cast<int>(gridDim.x) * kCandidates;
  __syncthreads();
  for (int base = 0; base < candidates; base += step) {
    // Which of them fire, in order.
    const int at = base + static_cast<int>(threadIdx.x) * static_cast<int>(gridDim.x) + blockIdx.x;
    int id = -1, slot = -1;
    uint32_t mask = 0;
    if (at < candidates) {
      id = args.streamed ? first + at : table.hot_ids[at];
      slot = args.streamed ? id : table.hot_slots[at];
      if (!args.streamed || (table.cold[id / 64] >> (id % 64) & 1) != 0) {
        for (int r = 0; r < rows; ++r) {
          mask |= static_cast<uint32_t>(
                      args.active[int64_t{row0 + r} * words + id / 64] >> (id % 64) & 1)
                  << r;
        }
      }
    }
    int count = 0;
    const int to = Compact(mask != 0, scratch, &count);
    if (mask != 0) {
      list[to] = id;
      slots[to] = slot;
      masks[to] = mask;
    }
    __syncthreads();
    if (count > 0 && source == nullptr) {
      if (threadIdx.x == 0) {
        state.failure = kStepNoColdSide;
        state.failed_layer = args.layer;
      }
      return;
    }
    for (int n = warp; n < count; n += kWarps) {
      const unsigned char* const bundle = source + slots[n] * bundles.bundle_bytes;
      float gate[R], up[R];
      RowDot<Format, R>(bundle, dim, zs, gate);
      bool any = false;
      const float bias = args.up_bias != nullptr ? args.up_bias[list[n]] : 0.0f;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        gate[r] += bias;
        gate[r] = (masks[n] >> r & 1) != 0 ? Activate(gate[r], args.activation) : 0.0f;
        any |= gate[r] != 0;
        up[r] = 1;
      }
      if (bundles.rows == 3 && any) {
        RowDot<Format, R>(bundle + bundles.row_bytes, dim, zs, up);
      }
      if (lane == 0) {
        const uint64_t mix = HashNeuron(seed, static_cast<uint64_t>(list[n]));
        uint32_t fires = 0;
#pragma unroll
        for (int r = 0; r < R; ++r) {
          values[n][r] = gate[r] * (args.activate_up ? Activate(up[r], args.activation) : up[r]);
          if ((masks[n] >> r & 1) != 0) {
            hash += args.step.rows[row0 + r].key * mix;
            fires += gate[r] != 0 ? 1 : 0;
          }
        }
        open += fires;
        if (fires != 0) atomicAdd(args.fired + list[n], fires);
      }
    }
    __syncthreads();
    // Those with a value.
    bool has_value = false;
    float mine[R];
    int my_slot = 0;
    if (static_cast<int>(threadIdx.x) < count) {
      my_slot = slots[threadIdx.x];
#pragma unroll
      for (int r = 0; r < R; ++r) {
        mine[r] = values[threadIdx.x][r];
        has_value |= mine[r] != 0;
      }
    }
    int kept = 0;
    const int place = Compact(has_value, scratch, &kept);
    if (has_value) {
      slots[place] = my_slot;
#pragma unroll
      for (int r = 0; r < R; ++r) values[place][r] = mine[r];
    }
    __syncthreads();
    const unsigned char* const down = source + (bundles.rows - 1) * bundles.row_bytes;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const int column = t * kTile + static_cast<int>(threadIdx.x) * kColumns;
      if (column >= dim) continue;
      constexpr int kUnroll = R == 1 ? 8 : 4;
      for (int n0 = 0; n0 < kept; n0 += kUnroll) {
        typename Format::Raw8 raw[kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          if (n0 + u < kept)
            raw[u] = Format::Load8(down + slots[n0 + u] * bundles.bundle_bytes, column);
        }
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          if (n0 + u >= kept) break;
          float w[kColumns];
          Format::Decode8(raw[u], column, w);
#pragma unroll
          for (int r = 0; r < R; ++r) {
            const float a = values[n0 + u][r];
#pragma unroll
            for (int i = 0; i < kColumns; ++i) acc[r][t][i] += a * w[i];
          }
        }
      }
    }
    __syncthreads();
  }
  float* const partial =
      args.partial + (int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * R * dim;
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    const int column = t * kTile + static_cast<int>(threadIdx.x) * kColumns;
    if (column >= dim) continue;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      auto* const to = reinterpret_cast<float4*>(partial + int64_t{r} * dim + column);
      to[0] = {acc[r][t][0], acc[r][t][1], acc[r][t][2], acc[r][t][3]};
      to[1] = {acc[r][t][4], acc[r][t][5], acc[r][t][6], acc[r][t][7]};
    }
  }
  if (lane == 0 && hash != 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(&state.work_hash), hash);
    atomicAdd(reinterpret_cast<unsigned long long*>(&state.open_neurons),
              static_cast<unsigned long long>(open));
  }
}

// sum[r, c] (+)= partial sums of the blocks, in order.
template <int R>
__global__ void __launch_bounds__(256) ReduceKernel(NeuronsArgs args, int blocks) {
  const StepHeader& header = *args.step.header;
  const int dim = static_cast<int>(args.bundles.model_dim);
  const int row = blockIdx.y;
  if (row >= header.num_rows) return;
  const float* const from = args.partial + int64_t{row / R} * blocks * R * dim + row % R * dim;
  // A warp takes 32 neighbouring columns; its block's 8 warps take every 8th partial.
  __shared__ float sums[8][33];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int column = blockIdx.x * kWarp + lane;
  float sum = 0;
  if (column < dim) {
    for (int b = warp; b < blocks; b += 8) sum += __ldcg(from + int64_t{b} * R * dim + column);
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp == 0 && column < dim) {
    float total = 0;
    for (int w = 0; w < 8; ++w) total += sums[w][lane];
    float* const to = args.sum + int64_t{row} * dim + column;
    *to = args.streamed ? total : *to + total;
  }
  if (threadIdx.x == 0 && blockIdx.x == 0 && row == 0) {
    const uint64_t now = GlobalTimer();
    StepState& state = *args.step.state;
    if (args.streamed && state.posted != 0) state.streamed_ns += now - state.posted_ns;
    if ((args.step.layers[args.layer].flags & kLayerTrace) != 0) {
      LayerTrace& trace = args.step.traces[args.layer];
      (args.streamed ? trace.streamed : trace.gpu_done) = now;
    }
  }
}

// Blocks of each row tile, so that all together they are about `blocks`.
int BlocksOfTile(int blocks, int tiles) { return tiles >= blocks ? 1 : blocks / tiles; }

}  // namespace

int64_t PartialFloats(int blocks, int max_rows, int64_t model_dim) {
  int64_t most = 0;
  for (int rows = 1; rows <= max_rows; ++rows) {
    const int tile = rows >= 3 ? 4 : rows;
    const int tiles = (rows + tile - 1) / tile;
    most = std::max(most, int64_t{tile} * tiles * BlocksOfTile(blocks, tiles));
  }
  return most * model_dim;
}

void LaunchNeurons(const NeuronsArgs& args, int max_rows, cudaStream_t stream) {
  const int64_t dim = args.bundles.model_dim;
  ForRowTile(max_rows, [&](auto tile) {
    constexpr int R = decltype(tile)::value;
    const int tiles = (max_rows + R - 1) / R;
    const int blocks = BlocksOfTile(args.streamed ? kStreamBlocks : kHotBlocks, tiles);
    const int shared = static_cast<int>(R * dim * int64_t{sizeof(float)});
    const auto launch = [&](auto kernel) {
      AllowShared(kernel, shared);
      kernel<<<dim3(blocks, tiles), kThreads, shared, stream>>>(args);
    };
    ForFormat(args.bundles.dtype, [&](auto format) {
      using Format = decltype(format);
      if (dim <= kTile) {
        launch(NeuronsKernel<Format, R, 1>);
      } else {
        launch(NeuronsKernel<Format, R, 2>);
      }
    });
    ReduceKernel<R><<<dim3((static_cast<int>(dim) + kWarp - 1) / kWarp, max_rows), 256, 0,
                      stream>>>(args, blocks);
  });
}

}  // namespace isotherm::gpu
