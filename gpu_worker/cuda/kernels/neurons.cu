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
// Pieces of 8 columns that a thread has under way, from the pool and over PCIe. There the answer of
// the cpu side waits behind all that was asked for before: with 8 pieces of 16 bytes it was seen
// 24 us after it was written, beyond what it took to compute, with 2 after 17.
constexpr int kHotUnroll = 8;
template <class Format>
constexpr int kStreamUnroll = 32 / sizeof(typename Format::Raw8);

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
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    before += w < warp ? scratch[w] : 0;
    total += scratch[w];
  }
  __syncthreads();
  *count = total;
  return before + __popc(ballot & ((1u << lane) - 1));
}

// The neurons of a row tile as bits, with the number of bits before each word: every block finds
// its own share by rank, so that all have the same number whichever neurons fire.
struct Selection {
  unsigned long long* bits;  // [words]
  int* before;               // [words]
  int* hot_before;           // [words]: of the table's hot bits, for their slots
  int count;                 // of all words
};

// Bytes of shared memory of a selection.
__host__ __device__ inline int SelectionBytes(int words) { return words * 16; }

// By the whole block; ends with a barrier. scratch: kWarps words of 64 bits.
__device__ inline Selection Select(const NeuronsArgs& args, const LayerTable& table, bool streamed,
                                   int first, int row0, int rows, unsigned char* shared,
                                   unsigned long long* scratch) {
  const int words = (args.num_neurons + 63) / 64;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  Selection out;
  out.bits = reinterpret_cast<unsigned long long*>(shared);
  out.before = reinterpret_cast<int*>(shared + words * 8);
  out.hot_before = out.before + words;
  unsigned long long carry = 0;  // low half: selected, high half: hot
  for (int base = 0; base < words; base += kThreads) {
    const int w = base + static_cast<int>(threadIdx.x);
    unsigned long long mask = 0, bits = 0;
    if (w < words) {
      mask = streamed ? table.cold[w] : table.hot[w];
      for (int r = 0; r < rows; ++r) bits |= args.active[int64_t{row0 + r} * words + w];
      bits &= mask;
      if (w * 64 < first) bits &= first - w * 64 >= 64 ? 0ull : ~0ull << (first - w * 64);
    }
    unsigned long long sum = static_cast<unsigned long long>(__popcll(bits)) |
                             static_cast<unsigned long long>(__popcll(mask)) << 32;
    const unsigned long long own = sum;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const unsigned long long other = __shfl_up_sync(0xffffffffu, sum, offset);
      if (lane >= offset) sum += other;
    }
    if (lane == kWarp - 1) scratch[warp] = sum;
    __syncthreads();
    unsigned long long before = carry, total = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      before += i < warp ? scratch[i] : 0;
      total += scratch[i];
    }
    if (w < words) {
      before += sum - own;
      out.bits[w] = bits;
      out.before[w] = static_cast<int>(before & 0xffffffffu);
      out.hot_before[w] = static_cast<int>(before >> 32);
    }
    carry += total;
    __syncthreads();
  }
  out.count = static_cast<int>(carry & 0xffffffffu);
  return out;
}

// Id of the selection's k-th neuron, k < count.
__device__ inline int IdOf(const Selection& s, int words, int k) {
  int low = 0, high = words - 1;  // the last word with before <= k
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (s.before[middle] <= k) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  unsigned long long bits = s.bits[low];
  int rank = k - s.before[low], bit = 0;
#pragma unroll
  for (int width = 32; width > 0; width /= 2) {
    const int in_low = __popcll(bits & ((1ull << width) - 1));
    if (rank >= in_low) {
      rank -= in_low;
      bits >>= width;
      bit += width;
    }
  }
  return low * 64 + bit;
}

template <class Format, int R, int kUnroll>
__device__ inline void RowDot(const unsigned char* row, int dim, const float* zs, float (&acc)[R]) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int r = 0; r < R; ++r) acc[r] = 0;
  const int plane = dim / 2;
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
__global__ void __launch_bounds__(kThreads) NeuronsKernel(NeuronsArgs args, int streamed_blocks) {
  LetNextBegin();
  AwaitPrevious();
  const StepHeader& header = *args.step.header;
  const int row0 = blockIdx.y * R;
  const int rows = min(R, header.num_rows - row0);
  if (rows <= 0) return;
  // The streamed ones' blocks come first: they take longest.
  const bool streamed = static_cast<int>(blockIdx.x) < streamed_blocks;
  const int block = static_cast<int>(blockIdx.x) - (streamed ? 0 : streamed_blocks);
  const int blocks = streamed ? streamed_blocks : static_cast<int>(gridDim.x) - streamed_blocks;
  const PartialSums& to_here = streamed ? args.streamed : args.hot;
  const LayerStep& layer = args.step.layers[args.layer];
  const LayerTable& table = header.tables[args.layer];
  StepState& state = *args.step.state;
  const DeviceBundles& bundles = args.bundles;
  const int dim = static_cast<int>(bundles.model_dim);
  const int words = (args.num_neurons + 63) / 64;

  int first = 0;
  const unsigned char* source = args.pool;
  if (streamed) {
    const bool to_cpu = header.ring.base != nullptr && (layer.flags & kLayerGpuOnly) == 0;
    first = to_cpu ? layer.cut : 0;
    source = header.arena != nullptr ? header.arena[args.layer] : nullptr;
  }

  // Nothing of this kind in the layer: it must not keep the other kind waiting for multiprocessors.
  if (streamed ? table.num_hot == args.num_neurons || first >= args.num_neurons
               : table.num_hot == 0) {
    if (block == 0 && threadIdx.x == 0) to_here.computed[blockIdx.y] = 0;
    return;
  }
  extern __shared__ float zs[];  // [R][dim], columns staged as for a product of 8 elements
  __shared__ int list[kCandidates], slots[kCandidates];
  __shared__ uint32_t masks[kCandidates];
  __shared__ float values[kCandidates][R];
  __shared__ int scratch[kWarps];
  __shared__ unsigned long long wide_scratch[kWarps];
  const Selection selection = Select(args, table, streamed, first, row0, rows,
                                     reinterpret_cast<unsigned char*>(zs + R * dim), wide_scratch);
  if (block == 0 && threadIdx.x == 0) to_here.computed[blockIdx.y] = selection.count;
  const int mine = (selection.count - block + blocks - 1) / blocks;  // of this block
  if (mine <= 0) return;
  if (source == nullptr) {
    if (threadIdx.x == 0) {
      state.failure = kStepNoColdSide;
      state.failed_layer = args.layer;
    }
    return;
  }
  if (streamed && block == 0 && threadIdx.x == 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(args.read),
              static_cast<unsigned long long>(selection.count));
    if ((layer.flags & kLayerTrace) != 0)
      atomicAdd(&args.step.traces[args.layer].read, selection.count);
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 8 * static_cast<int>(threadIdx.x); c < dim; c += 8 * kThreads) {
      uint4 raw = {0, 0, 0, 0};
      if (r < rows) raw = *reinterpret_cast<const uint4*>(args.z + int64_t{row0 + r} * dim + c);
      float v[8];
      if (args.bf16) {
        Bf16Format::Decode(raw, v);
      } else {
        F16Format::Decode(raw, v);
      }
      *Staged4<8>(zs + r * dim, c, dim) = {v[0], v[1], v[2], v[3]};
      *Staged4<8>(zs + r * dim, c + 4, dim) = {v[4], v[5], v[6], v[7]};
    }
  }
  const uint64_t seed =
      HashLayerSeed(static_cast<uint64_t>(header.epoch), static_cast<uint64_t>(args.layer));
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
  for (int base = 0; base < mine; base += kCandidates) {
    const int count = min(kCandidates, mine - base);
    if (static_cast<int>(threadIdx.x) < count) {
      const int id =
          IdOf(selection, words, (base + static_cast<int>(threadIdx.x)) * blocks + block);
      const int w = id / 64, bit = id % 64;
      uint32_t mask = 0;
      for (int r = 0; r < rows; ++r) {
        mask |= static_cast<uint32_t>(args.active[int64_t{row0 + r} * words + w] >> bit & 1) << r;
      }
      list[threadIdx.x] = id;
      masks[threadIdx.x] = mask;
      slots[threadIdx.x] = streamed ? id
                                    : table.hot_slots[selection.hot_before[w] +
                                                      __popcll(table.hot[w] & ((1ull << bit) - 1))];
    }
    __syncthreads();
    for (int n = warp; n < count; n += kWarps) {
      const unsigned char* const bundle = source + slots[n] * bundles.bundle_bytes;
      float gate[R], up[R];
      // One row after the other: a shut gate saves the second. Both at once took 41 us a layer
      // instead of 30 (7B, all resident): the registers that it needs halve the loads under way.
      // Asking for the next rows, to the second-level cache, took 36.
      if (streamed) {
        RowDot<Format, R, kStreamUnroll<Format>>(bundle, dim, zs, gate);
      } else {
        RowDot<Format, R, kHotUnroll>(bundle, dim, zs, gate);
      }
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
        if (streamed) {
          RowDot<Format, R, kStreamUnroll<Format>>(bundle + bundles.row_bytes, dim, zs, up);
        } else {
          RowDot<Format, R, kHotUnroll>(bundle + bundles.row_bytes, dim, zs, up);
        }
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
    float own[R];
    int own_slot = 0;
    if (static_cast<int>(threadIdx.x) < count) {
      own_slot = slots[threadIdx.x];
#pragma unroll
      for (int r = 0; r < R; ++r) {
        own[r] = values[threadIdx.x][r];
        has_value |= own[r] != 0;
      }
    }
    int kept = 0;
    const int place = Compact(has_value, scratch, &kept);
    if (has_value) {
      slots[place] = own_slot;
#pragma unroll
      for (int r = 0; r < R; ++r) values[place][r] = own[r];
    }
    __syncthreads();
    const unsigned char* const down = source + (bundles.rows - 1) * bundles.row_bytes;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const int column = t * kTile + static_cast<int>(threadIdx.x) * kColumns;
      if (column >= dim) continue;
      const auto add_rows = [&](auto unroll) {
        constexpr int kUnroll = decltype(unroll)::value;
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
      };
      if (streamed) {
        add_rows(std::integral_constant<int, kStreamUnroll<Format>>());
      } else {
        add_rows(std::integral_constant<int, (R == 1 ? kHotUnroll : kHotUnroll / 2)>());
      }
    }
    __syncthreads();
  }
  float* const partial = to_here.sums + (int64_t{blockIdx.y} * blocks + block) * R * dim;
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
  if (threadIdx.x == 0) {
    atomicMax(reinterpret_cast<unsigned long long*>(streamed ? &state.streamed_end_ns
                                                             : &state.hot_end_ns),
              static_cast<unsigned long long>(GlobalTimer()));
  }
}

}  // namespace

RowTiling TilingOf(int max_rows) {
  RowTiling out;
  out.rows = max_rows >= 3 ? 4 : max_rows < 1 ? 1 : max_rows;
  out.tiles = (max_rows + out.rows - 1) / out.rows;
  return out;
}

int64_t PartialFloats(int blocks, int max_rows, int64_t model_dim) {
  int64_t most = 0;
  for (int rows = 1; rows <= max_rows; ++rows) {
    const RowTiling tiling = TilingOf(rows);
    most = std::max(most, int64_t{tiling.rows} * tiling.tiles * tiling.BlocksOfTile(blocks));
  }
  return most * model_dim;
}

void LaunchNeurons(const NeuronsArgs& args, int max_rows, cudaStream_t stream) {
  const int64_t dim = args.bundles.model_dim;
  const RowTiling tiling = TilingOf(max_rows);
  ForRowTile(max_rows, [&](auto tile) {
    constexpr int R = decltype(tile)::value;
    const int hot = args.hot.sums != nullptr ? tiling.BlocksOfTile(kHotBlocks) : 0;
    const int streamed = args.streamed.sums != nullptr ? tiling.BlocksOfTile(kStreamBlocks) : 0;
    const int shared = static_cast<int>(R * dim * int64_t{sizeof(float)}) +
                       SelectionBytes((args.num_neurons + 63) / 64);
    const auto launch = [&](auto kernel) {
      AllowShared(kernel, shared);
      LaunchEarly(kernel, dim3(hot + streamed, tiling.tiles), kThreads, shared, stream, args.early,
                  args, streamed);
    };
    ForFormat(args.bundles.dtype, [&](auto format) {
      using Format = decltype(format);
      if (dim <= kTile) {
        launch(NeuronsKernel<Format, R, 1>);
      } else {
        launch(NeuronsKernel<Format, R, 2>);
      }
    });
  });
}

}  // namespace isotherm::gpu
