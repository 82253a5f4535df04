#include "gpu_worker/cuda/kernels/prefill.h"

#include <type_traits>

#include "gpu_worker/cuda/kernels/post.cuh"
#include "gpu_worker/cuda/kernels/product.cuh"

namespace isotherm::gpu {
namespace {

constexpr int kThreads = 256;

int Blocks(int64_t count) { return static_cast<int>((count + kThreads - 1) / kThreads); }

__global__ void __launch_bounds__(kThreads) NormRowsKernel(NormRowsArgs args) {
  __shared__ float scratch[32];
  const float* const x = args.x + blockIdx.x * args.stride;
  uint16_t* const out = args.out + int64_t{blockIdx.x} * args.columns;
  const RowNorm norm = MeasureRow(args.norm, x, args.columns, scratch);
  for (int c = threadIdx.x; c < args.columns; c += kThreads)
    out[c] = Bits16(Normed(args.norm, x[c], c, norm.scale, norm.shift), args.norm.bf16);
}

// Four values of 16 bits, stored together.
__device__ inline void Store4(uint16_t* to, const uint16_t (&v)[4]) {
  *reinterpret_cast<uint2*>(to) = {static_cast<uint32_t>(v[0]) | static_cast<uint32_t>(v[1]) << 16,
                                   static_cast<uint32_t>(v[2]) | static_cast<uint32_t>(v[3]) << 16};
}

// A thread takes four columns of a row.
__global__ void __launch_bounds__(kThreads) SplitRowsKernel(SplitRowsArgs args) {
  const int row = blockIdx.y;
  const int c = 4 * (static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x));
  if (c >= args.out_stride) return;
  const float* const x = args.x + row * args.x_stride + c;
  float v[4] = {};
  if (c + 4 <= args.columns) {
    const float4 loaded = *reinterpret_cast<const float4*>(x);
    v[0] = loaded.x, v[1] = loaded.y, v[2] = loaded.z, v[3] = loaded.w;
  } else {
    for (int i = 0; i < 4 && c + i < args.columns; ++i) v[i] = x[i];
  }
  uint16_t high[4], low[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (args.relu && v[i] < 0) v[i] = 0;  // a NaN stays
    high[i] = Bits16(v[i], args.bf16);
    low[i] = Bits16((v[i] - From16(high[i], args.bf16)) * kLowScale, args.bf16);
  }
  const int64_t at = int64_t{row} * args.out_stride + c;
  Store4(args.high + at, high);
  Store4(args.low + at, low);
}

// A warp takes a row, a lane what one load of 16 bytes holds.
template <class Format>
__global__ void __launch_bounds__(kThreads) Decode16Kernel(Decode16Args args) {
  const DeviceMatrix& w = args.w;
  const int64_t out_row = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (out_row >= args.num_rows) return;
  const int64_t row = args.first_row + out_row;
  const int columns = static_cast<int>(args.columns), padded = static_cast<int>(w.padded_columns);
  const bool there = row < w.rows;
  const auto* const data = reinterpret_cast<const uint4*>(
      static_cast<const unsigned char*>(w.data) + row * Format::RowBytes(padded));
  for (int c = static_cast<int>(threadIdx.x) % kWarp; c * Format::kElems < columns; c += kWarp) {
    float values[Format::kElems] = {};
    float scale = 1;
    if (there) {
      Format::Decode(__ldg(data + c), values);
      if constexpr (Format::kScaled) {
        scale =
            __half2float(__ushort_as_half(w.scales[row * (padded / 32) + c * Format::kElems / 32]));
      }
    }
    const int64_t at = out_row * columns + c * Format::kElems;
#pragma unroll
    for (int i = 0; i < Format::kElems; i += 4) {
      if (c * Format::kElems + i >= columns) break;  // columns come in eights
      uint16_t high[4], low[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float value = scale * values[i + k];
        high[k] = Bits16(value, args.bf16);
        low[k] = Bits16((value - From16(high[k], args.bf16)) * kLowScale, args.bf16);
      }
      Store4(args.out + at + i, high);
      if (args.low != nullptr) Store4(args.low + at + i, low);
    }
  }
}

// A block takes a row, a thread a pair of elements that are rotated together, or two neighbours.
__global__ void __launch_bounds__(kThreads) FinishQkvKernel(FinishQkvArgs args) {
  const AttentionShape& shape = args.shape;
  const int half = shape.head_dim / 2;
  const int heads = shape.num_q_heads + 2 * shape.num_kv_heads;
  const int row = args.first_row + blockIdx.x;
  const float* const qkv = args.qkv + int64_t{blockIdx.x} * heads * shape.head_dim;
  const StepRow& where = args.step.rows[row];
  const int page =
      args.step
          .page_tables[int64_t{where.table} * args.step.header->max_pages + where.position / 16];
  for (int task = threadIdx.x; task < heads * half; task += kThreads) {
    const int head = task / half, i = task % half;
    const bool rotary = head < shape.num_q_heads + shape.num_kv_heads && i < shape.rope_half;
    const bool neox = rotary && shape.rope_neox;
    const int i0 = neox ? i : 2 * i, i1 = neox ? i + shape.rope_half : 2 * i + 1;
    float a = qkv[head * shape.head_dim + i0], b = qkv[head * shape.head_dim + i1];
    if (args.bias != nullptr) {
      a += args.bias[head * shape.head_dim + i0];
      b += args.bias[head * shape.head_dim + i1];
    }
    if (rotary) {
      const float cos = args.rope_cos[int64_t{row} * shape.rope_half + i];
      const float sin = args.rope_sin[int64_t{row} * shape.rope_half + i];
      const float rotated = a * cos - b * sin;
      b = a * sin + b * cos;
      a = rotated;
    }
    if (head < shape.num_q_heads) {
      float* const q = args.q + (int64_t{blockIdx.x} * shape.num_q_heads + head) * shape.head_dim;
      q[i0] = a;
      q[i1] = b;
      continue;
    }
    const bool is_key = head < shape.num_q_heads + shape.num_kv_heads;
    const int kv_head = head - shape.num_q_heads - (is_key ? 0 : shape.num_kv_heads);
    uint16_t* const to =
        (is_key ? args.kv.keys : args.kv.values) +
        ((int64_t{page} * shape.num_kv_heads + kv_head) * 16 + where.position % 16) *
            shape.head_dim;
    to[i0] = Bits16(a, shape.bf16);
    to[i1] = Bits16(b, shape.bf16);
  }
}

__global__ void __launch_bounds__(kThreads)
    AddBiasKernel(float* x, const float* bias, int columns) {
  float* const row = x + int64_t{blockIdx.x} * columns;
  for (int c = threadIdx.x; c < columns; c += kThreads) row[c] += bias[c];
}

// A warp takes a bundle's row at a time.
template <class Format>
__global__ void __launch_bounds__(kThreads) GatherBundlesKernel(GatherBundlesArgs args) {
  const DeviceBundles& bundles = args.bundles;
  const int lane = threadIdx.x % kWarp;
  const int warps = static_cast<int>(gridDim.x) * (kThreads / kWarp);
  const unsigned char* const source =
      args.streamed ? args.step.header->arena[args.layer] : args.pool;
  const int dim = static_cast<int>(bundles.model_dim);
  for (int task = blockIdx.x * (kThreads / kWarp) + threadIdx.x / kWarp;
       task < PaddedCount(args.count) * bundles.rows; task += warps) {
    const int neuron = task / bundles.rows, which = task % bundles.rows;
    const unsigned char* const row = source +
                                     args.list[min(neuron, args.count - 1)] * bundles.bundle_bytes +
                                     which * bundles.row_bytes;
    uint16_t* const out = args.out + (int64_t{neuron} * bundles.rows + which) * dim;
    constexpr bool kCopy = std::is_same_v<Format, F16Format> || std::is_same_v<Format, Bf16Format>;
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
        if constexpr (kCopy) {
          *reinterpret_cast<uint4*>(out + c) = raw[u];
        } else {
          float w[8];
          Format::Decode8(raw[u], c, w);
          uint16_t packed[8];
#pragma unroll
          for (int i = 0; i < 8; ++i) packed[i] = Bits16(w[i], args.bf16);
          *reinterpret_cast<uint4*>(out + c) = *reinterpret_cast<const uint4*>(packed);
        }
      }
    }
  }
}

__device__ inline float Act(float v, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return v < 0 ? 0.0f : v;
    case Activation::kSilu:
      return v / (1.0f + expf(-v));
    default:
      return 0.5f * v * (1.0f + erff(v * 0.70710678118654752f));
  }
}

// A block takes kThreads neurons of some rows, a thread one neuron.
constexpr int kRowsOfBlock = 8;

__global__ void __launch_bounds__(kThreads) NeuronValuesKernel(NeuronValuesArgs args) {
  __shared__ unsigned long long scratch[32];
  const int i = blockIdx.x * kThreads + threadIdx.x;
  const bool live = i < args.count;
  const int id = !live ? 0 : args.ids != nullptr ? args.ids[i] : args.first_id + i;
  const int words = (args.num_neurons + 63) / 64;
  const uint64_t seed = HashLayerSeed(static_cast<uint64_t>(args.step.header->epoch),
                                      static_cast<uint64_t>(args.layer));
  const uint64_t mix = HashNeuron(seed, static_cast<uint64_t>(id));
  const float bias = args.up_bias != nullptr && live ? args.up_bias[id] : 0.0f;
  uint32_t fires = 0;
  unsigned long long keys = 0;
  const int first = blockIdx.y * kRowsOfBlock;
  const int last = min(args.num_rows, first + kRowsOfBlock);
  for (int r = first; r < last && i < PaddedCount(args.count); ++r) {
    const int row = args.first_row + r;
    const int64_t at = int64_t{r} * args.stride + i;
    float value = 0;
    if (live && (args.active[int64_t{row} * words + id / 64] >> (id % 64) & 1) != 0) {
      value = Act(args.gate[at] + bias, args.activation);
      keys += args.step.rows[row].key;
      fires += value != 0 ? 1 : 0;
      if (args.up != nullptr && value != 0)
        value *= args.activate_up ? Act(args.up[at], args.activation) : args.up[at];
    }
    args.values[at] = Bits16(value, args.bf16);
  }
  if (fires != 0) atomicAdd(args.fired + id, fires);
  if (args.read != nullptr && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(args.read),
              static_cast<unsigned long long>(args.count));
  }
  const unsigned long long hash = BlockSum(keys * mix, scratch);
  const unsigned long long open = BlockSum(static_cast<unsigned long long>(fires), scratch);
  if (threadIdx.x == 0 && hash != 0) {
    StepState& state = *args.step.state;
    atomicAdd(reinterpret_cast<unsigned long long*>(&state.work_hash), hash);
    atomicAdd(reinterpret_cast<unsigned long long*>(&state.open_neurons), open);
  }
}

// A block takes kThreads neurons of some rows, a thread one neuron, a warp half a word of the
// bitmap.
__global__ void __launch_bounds__(kThreads) ActivateRowsKernel(ActivateRowsArgs args) {
  __shared__ unsigned long long scratch[32];
  const StepHeader& header = *args.step.header;
  const int lane = threadIdx.x % kWarp;
  const int words = (args.num_neurons + 63) / 64;
  const int at = blockIdx.x * kThreads + static_cast<int>(threadIdx.x);  // of `count`
  const int neuron = args.first_neuron + at;
  const bool live = at < args.count && neuron < args.num_neurons;
  const int half = neuron / kWarp;
  // Behind the last neuron its word is filled up.
  const bool own_half = at / 64 < (args.count + 63) / 64 && half < 2 * words;
  const uint32_t hot_bits =
      own_half ? reinterpret_cast<const uint32_t*>(header.tables[args.layer].hot)[half] : 0;
  const bool layer_exact = (args.step.layers[args.layer].flags & kLayerExact) != 0;
  const int first = blockIdx.y * kRowsOfBlock;
  const int last = min(args.num_rows, first + kRowsOfBlock);
  unsigned long long keys = 0, counts = 0;  // low half of counts: active, high half: hot
  uint32_t named = 0;
  for (int r = first; r < last; ++r) {
    const int row = args.first_row + r;
    const StepRow& what = args.step.rows[row];
    const bool all = args.scores == nullptr || layer_exact || what.exact != 0;
    // A NaN score computes its neuron rather than losing it.
    const bool on = live && (all || !(args.scores[int64_t{r} * args.stride + at] < args.threshold));
    const uint32_t bits = __ballot_sync(0xffffffffu, on);
    if (on) {
      keys += what.key;
      named += all ? 0 : 1;
    }
    if (lane == 0 && own_half) {
      reinterpret_cast<uint32_t*>(args.active + int64_t{row} * words)[half] = bits;
      counts += static_cast<unsigned long long>(__popc(bits)) |
                static_cast<unsigned long long>(__popc(bits & hot_bits)) << 32;
    }
  }
  if (named != 0) atomicAdd(args.predicted + neuron, named);
  const uint64_t seed =
      HashLayerSeed(static_cast<uint64_t>(header.epoch), static_cast<uint64_t>(args.layer));
  const unsigned long long owed =
      BlockSum(keys * HashNeuron(seed, static_cast<uint64_t>(neuron)), scratch);
  counts = BlockSum(counts, scratch);
  if (threadIdx.x == 0 && counts != 0) {
    StepState& state = *args.step.state;
    atomicAdd(reinterpret_cast<unsigned long long*>(&state.owed_hash), owed);
    atomicAdd(reinterpret_cast<unsigned long long*>(&state.active_neurons), counts & 0xffffffffu);
    atomicAdd(reinterpret_cast<unsigned long long*>(&state.hot_neurons), counts >> 32);
  }
}

// One block, kListThreads neurons at a time.
constexpr int kListThreads = 1024;

__device__ int Append(bool stays, int* scratch, int* total) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const uint32_t ballot = __ballot_sync(0xffffffffu, stays);
  if (lane == 0) scratch[warp] = __popc(ballot);
  __syncthreads();
  int before = *total, all = 0;
  for (int w = 0; w < kListThreads / kWarp; ++w) {
    before += w < warp ? scratch[w] : 0;
    all += scratch[w];
  }
  __syncthreads();
  *total += all;
  return before + __popc(ballot & ((1u << lane) - 1));
}

__global__ void __launch_bounds__(kListThreads) ListNeuronsKernel(ListNeuronsArgs args) {
  __shared__ int scratch[kListThreads / kWarp];
  const StepHeader& header = *args.step.header;
  const LayerStep& layer = args.step.layers[args.layer];
  const LayerTable& table = header.tables[args.layer];
  const int words = (args.num_neurons + 63) / 64;
  const bool cut =
      args.to_cpu == nullptr && header.ring.base != nullptr && (layer.flags & kLayerGpuOnly) == 0;
  const int first_cold = max(cut ? layer.cut : 0, args.first_cold);
  extern __shared__ unsigned long long together[];  // [words]
  for (int w = threadIdx.x; w < words; w += kListThreads) {
    unsigned long long bits = args.only_active ? 0ull : ~0ull;
    if (args.only_active) {
#pragma unroll 8
      for (int r = 0; r < args.num_rows; ++r) bits |= args.active[int64_t{r} * words + w];
    }
    together[w] = bits;
  }
  __syncthreads();
  const auto wanted = [&](int id) { return (together[id / 64] >> (id % 64) & 1) != 0; };
  int hot = 0, cold = 0;
  const auto cold_of = [&](int w) {
    return args.to_cpu != nullptr ? table.cold[w] & ~args.to_cpu[w] : table.cold[w];
  };
  const int num_hot = args.hot_ids != nullptr ? table.num_hot : 0;
  for (int base = 0; base < num_hot; base += kListThreads) {
    const int at = base + static_cast<int>(threadIdx.x);
    const bool stays = at < num_hot && wanted(table.hot_ids[at]);
    const int to = Append(stays, scratch, &hot);
    if (stays) {
      args.hot_ids[to] = table.hot_ids[at];
      args.hot_slots[to] = table.hot_slots[at];
    }
  }
  for (int base = first_cold / kListThreads * kListThreads; base < args.last_cold;
       base += kListThreads) {
    const int id = base + static_cast<int>(threadIdx.x);
    const bool stays = id >= first_cold && id < args.last_cold &&
                       (cold_of(id / 64) >> (id % 64) & 1) != 0 && wanted(id);
    const int to = Append(stays, scratch, &cold);
    if (stays) args.cold_ids[to] = id;
  }
  if (threadIdx.x == 0 && args.counts != nullptr) {
    args.counts[0] = hot;
    args.counts[1] = cold;
    if (args.layer > 0) {
      const LayerTimes times = args.step.times[args.layer - 1];
      args.counts[2] = static_cast<int32_t>(times.cpu_ns);
      args.counts[3] = static_cast<int32_t>(times.streamed_ns);
    }
  }
}

__global__ void __launch_bounds__(kThreads) PostRowsKernel(PostRowsArgs args) {
  __shared__ uint32_t scratch[32];
  __shared__ bool last;
  const StepHeader& header = *args.step.header;
  StepState& state = *args.step.state;
  unsigned char* const slot = SlotOf(args.step, args.layer);
  if (slot != nullptr) {
    const int words = (args.num_neurons + 63) / 64;
    const int first = blockIdx.x * kThreads + static_cast<int>(threadIdx.x);
    const int step = static_cast<int>(gridDim.x) * kThreads;
    const auto* const z = reinterpret_cast<const uint4*>(args.z);
    auto* const z_to = reinterpret_cast<uint4*>(slot + header.ring.z_offset);
    for (int i = first; i < args.num_rows * (args.model_dim / 8); i += step) z_to[i] = z[i];
    auto* const active_to = reinterpret_cast<uint64_t*>(slot + header.ring.active_offset);
    uint32_t below = 0;
    for (int i = first; i < args.num_rows * words; i += step) {
      const uint64_t bits = args.active[i] & args.to_cpu[i % words];
      active_to[i] = bits;
      below += static_cast<uint32_t>(__popcll(bits));
    }
    below = BlockSum(below, scratch);
    if (threadIdx.x == 0 && below != 0) atomicAdd(&state.cold_below_cut, below);
    __threadfence_system();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(&state.arrived, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (last) {
    PostLayer({.step = args.step,
               .layer = args.layer,
               .num_neurons = args.num_neurons,
               .active = args.active},
              slot, args.num_neurons);
  }
}

// A thread takes a neuron.
__global__ void __launch_bounds__(kThreads) DivideRowsKernel(DivideRowsArgs args) {
  const int neuron = blockIdx.x * kThreads + static_cast<int>(threadIdx.x);
  const int words = (args.num_neurons + 63) / 64;
  const int w = neuron / 64, bit = neuron % 64;
  bool to_cpu = false;
  if (neuron < min(args.num_neurons, args.last) && SlotOf(args.step, args.layer) != nullptr &&
      (args.step.header->tables[args.layer].cold[w] >> bit & 1) != 0) {
    if (args.level < 0) {
      to_cpu = neuron < args.step.layers[args.layer].cut;
    } else {
      int count = 0;
#pragma unroll 8
      for (int r = 0; r < args.num_rows; ++r)
        count += static_cast<int>(args.active[int64_t{r} * words + w] >> bit & 1);
      const int whole = static_cast<int>(args.level);
      const float fraction = args.level - static_cast<float>(whole);
      to_cpu = count < whole ||
               (count == whole &&
                static_cast<float>(neuron) < fraction * static_cast<float>(args.num_neurons));
    }
  }
  const uint32_t bits = __ballot_sync(0xffffffffu, to_cpu);
  const int half = neuron / kWarp;
  if (threadIdx.x % kWarp == 0 && half < 2 * words)
    reinterpret_cast<uint32_t*>(args.to_cpu)[half] = bits;
}

__global__ void MarkKernel(uint64_t* at) { *at = GlobalTimer(); }

}  // namespace

void LaunchNormRows(const NormRowsArgs& args, cudaStream_t stream) {
  if (args.num_rows > 0) NormRowsKernel<<<args.num_rows, kThreads, 0, stream>>>(args);
}

void LaunchSplitRows(const SplitRowsArgs& args, cudaStream_t stream) {
  if (args.num_rows == 0) return;
  const dim3 grid(static_cast<unsigned>(Blocks(args.out_stride / 4)),
                  static_cast<unsigned>(args.num_rows));
  SplitRowsKernel<<<grid, kThreads, 0, stream>>>(args);
}

void LaunchDecode16(const Decode16Args& args, cudaStream_t stream) {
  ForFormat(args.w.dtype, [&](auto format) {
    Decode16Kernel<decltype(format)><<<Blocks(args.num_rows * kWarp), kThreads, 0, stream>>>(args);
  });
}

void LaunchFinishQkv(const FinishQkvArgs& args, cudaStream_t stream) {
  FinishQkvKernel<<<args.num_rows, kThreads, 0, stream>>>(args);
}

void LaunchAddBias(float* x, const float* bias, int32_t num_rows, int32_t columns,
                   cudaStream_t stream) {
  AddBiasKernel<<<num_rows, kThreads, 0, stream>>>(x, bias, columns);
}

void LaunchGatherBundles(const GatherBundlesArgs& args, cudaStream_t stream) {
  if (args.count == 0) return;
  ForFormat(args.bundles.dtype, [&](auto format) {
    GatherBundlesKernel<decltype(format)><<<args.blocks, kThreads, 0, stream>>>(args);
  });
}

void LaunchNeuronValues(const NeuronValuesArgs& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(Blocks(args.count)),
                  static_cast<unsigned>((args.num_rows + kRowsOfBlock - 1) / kRowsOfBlock));
  NeuronValuesKernel<<<grid, kThreads, 0, stream>>>(args);
}

void LaunchActivateRows(const ActivateRowsArgs& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(Blocks(args.count)),
                  static_cast<unsigned>((args.num_rows + kRowsOfBlock - 1) / kRowsOfBlock));
  ActivateRowsKernel<<<grid, kThreads, 0, stream>>>(args);
}

void LaunchListNeurons(const ListNeuronsArgs& args, cudaStream_t stream) {
  const int shared = (args.num_neurons + 63) / 64 * 8;
  AllowShared(ListNeuronsKernel, shared);
  ListNeuronsKernel<<<1, kListThreads, shared, stream>>>(args);
}

void LaunchDivideRows(const DivideRowsArgs& args, cudaStream_t stream) {
  DivideRowsKernel<<<Blocks(args.num_neurons), kThreads, 0, stream>>>(args);
}

void LaunchPostRows(const PostRowsArgs& args, cudaStream_t stream) {
  constexpr int kBlocks = 64;
  PostRowsKernel<<<kBlocks, kThreads, 0, stream>>>(args);
}

void LaunchMark(uint64_t* at, cudaStream_t stream) { MarkKernel<<<1, 1, 0, stream>>>(at); }

}  // namespace isotherm::gpu
