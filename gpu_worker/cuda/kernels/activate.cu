#include <type_traits>

#include "common/shm/control_layout.h"
#include "gpu_worker/cuda/kernels/product.cuh"

namespace isotherm::gpu {
namespace {

using shm::RequestFields;

// Popcount over the block's threads of what `word(w)` gives for each word.
template <class Word>
__device__ uint32_t CountBits(int words, const Word& word, uint32_t* scratch) {
  uint32_t count = 0;
  for (int w = threadIdx.x; w < words; w += blockDim.x)
    count += static_cast<uint32_t>(__popcll(word(w)));
  return BlockSum(count, scratch);
}

template <typename T>
__device__ void CopyToHost(unsigned char* to, const T* from, int64_t count) {
  auto* const out = reinterpret_cast<T*>(to);
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) out[i] = __ldcg(from + i);
}

// By the whole last block: counts, and the post to the cpu side if any of its neurons is active.
__device__ void PostLayer(const ActivateArgs& args) {
  const StepHeader& header = *args.step.header;
  const LayerStep& layer = args.step.layers[args.layer];
  const LayerTable& table = header.tables[args.layer];
  StepState& state = *args.step.state;
  const int words = (args.num_neurons + 63) / 64;
  const int rows = header.num_rows;
  __shared__ uint32_t scratch[32];
  const auto together = [&](int w) {
    unsigned long long bits = 0;
    for (int r = 0; r < rows; ++r)
      bits |= __ldcg(reinterpret_cast<const unsigned long long*>(args.active) +
                     int64_t{r} * words + w);
    return bits;
  };
  const bool to_cpu = header.ring.base != nullptr && (layer.flags & kLayerGpuOnly) == 0;
  const int cut = to_cpu ? layer.cut : 0;
  const uint32_t below = CountBits(
      words,
      [&](int w) -> unsigned long long {
        if (w * 64 >= cut) return 0;
        unsigned long long bits = together(w) & table.cold[w];
        if (cut - w * 64 < 64) bits &= (1ull << (cut - w * 64)) - 1;
        return bits;
      },
      scratch);
  const bool trace = (layer.flags & kLayerTrace) != 0;
  if (trace) {
    const uint32_t active = CountBits(words, together, scratch);
    const uint32_t hot =
        CountBits(words, [&](int w) { return together(w) & table.hot[w]; }, scratch);
    if (threadIdx.x == 0) {
      args.step.traces[args.layer].active = static_cast<int32_t>(active);
      args.step.traces[args.layer].hot = static_cast<int32_t>(hot);
    }
  }
  const bool post = below > 0 && state.failure == kStepOk;
  if (threadIdx.x == 0) {
    state.posted = post ? 1 : 0;
    state.arrived = 0;
    if (trace) args.step.traces[args.layer].activated = GlobalTimer();
  }
  if (!post) return;
  const SlotRing& ring = header.ring;
  const uint64_t sequence = state.next_sequence;
  unsigned char* const slot =
      ring.base + ring.slots_offset + static_cast<int64_t>(sequence & ring.slot_mask) * ring.slot_stride;
  const int64_t z_halves = int64_t{rows} * args.model_dim;
  if (z_halves % 8 == 0) {
    CopyToHost(slot + ring.z_offset, reinterpret_cast<const uint4*>(args.z), z_halves / 8);
  } else {
    CopyToHost(slot + ring.z_offset, args.z, z_halves);
  }
  CopyToHost(slot + ring.active_offset, reinterpret_cast<const unsigned long long*>(args.active),
             int64_t{rows} * words);
  auto* const keys = reinterpret_cast<int32_t*>(slot + ring.row_keys_offset);
  for (int r = threadIdx.x; r < rows; r += blockDim.x) keys[r] = r;
  if (threadIdx.x == 0) {
    const uint64_t spent = GlobalTimer() - state.start_ns;
    auto& fields = *reinterpret_cast<RequestFields*>(slot + 64);
    fields.nonce_high = ring.nonce_high;
    fields.nonce_low = ring.nonce_low;
    fields.sequence = sequence;
    fields.step_id = header.step_id;
    fields.epoch = header.epoch;
    fields.layer = args.layer;
    fields.attempt = header.attempt;
    fields.num_rows = rows;
    fields.cut = cut;
    const int64_t left = header.time_left_ns - static_cast<int64_t>(spent);
    fields.time_left_us = left > 0 ? left / 1000 : 0;
  }
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x == 0) {
    StoreReleaseSystem(slot, sequence);
    state.posted_ns = GlobalTimer();
    if (trace) args.step.traces[args.layer].posted = state.posted_ns;
  }
}

// A block makes one word (64 neurons) of R rows' bitmaps.
template <class Format, int R, bool kPredict>
__global__ void __launch_bounds__(kProductThreads) ActivateKernel(ActivateArgs args) {
  const StepHeader& header = *args.step.header;
  const int row0 = blockIdx.y * R;
  const int rows = min(R, header.num_rows - row0);
  if (rows <= 0) return;
  const LayerStep& layer = args.step.layers[args.layer];
  const int words = (args.num_neurons + 63) / 64;
  const int word = blockIdx.x;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  __shared__ uint8_t fires[R][64];
  const bool all = !kPredict || (layer.flags & kLayerExact) != 0;
  for (int i = threadIdx.x; i < R * 64; i += blockDim.x) fires[i / 64][i % 64] = 1;
  __syncthreads();
  if constexpr (kPredict) {
    if (!all) {
      extern __shared__ float xs[];
      const DeviceMatrix& w = args.fc2;
      const int padded = static_cast<int>(w.padded_columns);
      const ProductInput in{.x = args.hidden, .stride = args.hidden_stride};
      StageRows<Format::kElems, R>(in, row0, rows, static_cast<int>(w.columns), padded, xs);
      constexpr int kOutputs = 4;
      for (int n = warp * 8; n < warp * 8 + 8; n += kOutputs) {
        int which[kOutputs];
#pragma unroll
        for (int i = 0; i < kOutputs; ++i)
          which[i] = min(word * 64 + n + i, args.num_neurons - 1);
        float acc[kOutputs][R];
        WarpDots<Format, kOutputs, R>(w, which, xs, acc);
        if (lane == 0) {
#pragma unroll
          for (int i = 0; i < kOutputs; ++i) {
#pragma unroll
            // A NaN score computes its neuron rather than losing it.
            for (int r = 0; r < R; ++r) fires[r][n + i] = !(acc[i][r] < args.threshold);
          }
        }
      }
      __syncthreads();
    }
  }
  // Two warps per row: the halves of the word.
  const LayerTable& table = header.tables[args.layer];
  const uint64_t seed = HashLayerSeed(static_cast<uint64_t>(header.epoch),
                                      static_cast<uint64_t>(args.layer));
  unsigned long long owed = 0;
  unsigned int active = 0, hot = 0;
  unsigned int named = 0;  // bit i: of this lane's i-th piece, the predictor named the neuron
  int pieces = 0;
  for (int piece = warp; piece < 2 * rows; piece += kProductWarps) {
    const int r = piece / 2, half = piece % 2;
    const int neuron = word * 64 + half * 32 + lane;
    const StepRow& what = args.step.rows[row0 + r];
    const bool on =
        neuron < args.num_neurons && (all || what.exact != 0 || fires[r][half * 32 + lane] != 0);
    const uint32_t bits = __ballot_sync(0xffffffffu, on);
    if (kPredict && on && !all && what.exact == 0) named |= 1u << pieces;
    ++pieces;
    if (on) owed += what.key * HashNeuron(seed, static_cast<uint64_t>(neuron));
    if (lane == 0) {
      reinterpret_cast<uint32_t*>(args.active + (int64_t{row0 + r} * words + word))[half] = bits;
      active += __popc(bits);
      hot += __popc(bits & reinterpret_cast<const uint32_t*>(table.hot + word)[half]);
    }
  }
  owed = WarpSum(owed);
  StepState& state = *args.step.state;
  if (lane == 0 && active != 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(&state.owed_hash), owed);
    atomicAdd(reinterpret_cast<unsigned long long*>(&state.active_neurons),
              static_cast<unsigned long long>(active));
    atomicAdd(reinterpret_cast<unsigned long long*>(&state.hot_neurons),
              static_cast<unsigned long long>(hot));
  }
  __threadfence();
  __syncthreads();
  __shared__ bool last;
  if (threadIdx.x == 0) {
    const uint32_t tiles = (header.num_rows + R - 1) / R;
    last = atomicAdd(&state.arrived, 1u) == gridDim.x * tiles - 1;
  }
  __syncthreads();
  if (last) {
    __threadfence();
    PostLayer(args);
  }
  // Counting comes after what the cpu side waits for.
  if constexpr (kPredict) {
    for (int i = 0; i < pieces; ++i) {
      if ((named >> i & 1) == 0) continue;
      const int half = (warp + i * kProductWarps) % 2;
      atomicAdd(args.predicted + word * 64 + half * 32 + lane, 1u);
    }
  }
}

}  // namespace

void LaunchActivate(const ActivateArgs& args, int max_rows, cudaStream_t stream) {
  const int words = (args.num_neurons + 63) / 64;
  ForRowTile(max_rows, [&](auto tile) {
    constexpr int R = decltype(tile)::value;
    const dim3 grid(words, (max_rows + R - 1) / R);
    if (args.fc2.rows == 0) {
      ActivateKernel<F16Format, R, false><<<grid, kProductThreads, 0, stream>>>(args);
      return;
    }
    ForFormat(args.fc2.dtype, [&](auto format) {
      const auto kernel = ActivateKernel<decltype(format), R, true>;
      const int shared = static_cast<int>(R * args.fc2.padded_columns * sizeof(float));
      AllowShared(kernel, shared);
      kernel<<<grid, kProductThreads, shared, stream>>>(args);
    });
  });
}

}  // namespace isotherm::gpu
