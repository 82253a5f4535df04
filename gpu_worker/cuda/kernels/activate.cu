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

constexpr int kActivateThreads = 128;
constexpr int kActivateWarps = kActivateThreads / kWarp;
constexpr int kNeuronsOfBlock = kWarp;  // half a word of the bitmap

// By the whole last block: the post to the cpu side, if any of its neurons is active. z and the bitmaps
// are in the slot already.
__device__ void PostLayer(const ActivateArgs& args, unsigned char* slot, int cut) {
  const StepHeader& header = *args.step.header;
  const LayerStep& layer = args.step.layers[args.layer];
  StepState& state = *args.step.state;
  const int rows = header.num_rows;
  const bool trace = (layer.flags & kLayerTrace) != 0;
  if (trace) {
    __shared__ uint32_t scratch[32];
    const LayerTable& table = header.tables[args.layer];
    const int words = (args.num_neurons + 63) / 64;
    const auto together = [&](int w) {
      unsigned long long bits = 0;
      for (int r = 0; r < rows; ++r)
        bits |= __ldcg(reinterpret_cast<const unsigned long long*>(args.active) +
                       int64_t{r} * words + w);
      return bits;
    };
    const uint32_t active = CountBits(words, together, scratch);
    const uint32_t hot =
        CountBits(words, [&](int w) { return together(w) & table.hot[w]; }, scratch);
    if (threadIdx.x == 0) {
      args.step.traces[args.layer].active = static_cast<int32_t>(active);
      args.step.traces[args.layer].hot = static_cast<int32_t>(hot);
    }
  }
  const uint32_t below = __ldcg(&state.cold_below_cut);
  const bool post = slot != nullptr && below > 0 && state.failure == kStepOk;
  if (post) {
    const SlotRing& ring = header.ring;
    auto* const keys = reinterpret_cast<int32_t*>(slot + ring.row_keys_offset);
    for (int r = threadIdx.x; r < rows; r += kActivateThreads) keys[r] = r;
    __threadfence();
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  state.posted = post ? 1 : 0;
  state.arrived = 0;
  state.cold_below_cut = 0;
  if (trace) args.step.traces[args.layer].activated = GlobalTimer();
  if (!post) return;
  const uint64_t sequence = state.next_sequence;
  const int64_t left =
      header.time_left_ns - static_cast<int64_t>(GlobalTimer() - state.start_ns);
  auto& fields = *reinterpret_cast<RequestFields*>(slot + 64);
  fields.nonce_high = header.ring.nonce_high;
  fields.nonce_low = header.ring.nonce_low;
  fields.sequence = sequence;
  fields.step_id = header.step_id;
  fields.epoch = header.epoch;
  fields.layer = args.layer;
  fields.attempt = header.attempt;
  fields.num_rows = rows;
  fields.cut = cut;
  fields.time_left_us = left > 0 ? left / 1000 : 0;
  __threadfence_system();
  StoreReleaseSystem(slot, sequence);
  state.posted_ns = GlobalTimer();
  if (trace) args.step.traces[args.layer].posted = state.posted_ns;
}

// A block makes half a word (32 neurons) of R rows' bitmaps.
template <class Format, int R, bool kPredict>
__global__ void __launch_bounds__(kActivateThreads) ActivateKernel(ActivateArgs args) {
  const StepHeader& header = *args.step.header;
  const int row0 = blockIdx.y * R;
  const int rows = min(R, header.num_rows - row0);
  if (rows <= 0) return;
  const LayerStep& layer = args.step.layers[args.layer];
  const int words = (args.num_neurons + 63) / 64;
  const int half = blockIdx.x;  // of the row's bitmap
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const SlotRing& ring = header.ring;
  const bool to_cpu = ring.base != nullptr && (layer.flags & kLayerGpuOnly) == 0;
  const int cut = to_cpu ? layer.cut : 0;
  unsigned char* const slot =
      to_cpu ? ring.base + ring.slots_offset +
                   static_cast<int64_t>(args.step.state->next_sequence & ring.slot_mask) *
                       ring.slot_stride
             : nullptr;
  __shared__ uint8_t fires[R][kNeuronsOfBlock];
  const bool all = !kPredict || (layer.flags & kLayerExact) != 0;
  if constexpr (kPredict) {
    if (!all) {
      extern __shared__ float xs[];
      const DeviceMatrix& w = args.fc2;
      const int padded = static_cast<int>(w.padded_columns);
      const ProductInput in{.x = args.hidden, .stride = args.hidden_stride};
      constexpr int kOutputs = 4;
      static_assert(kNeuronsOfBlock == 2 * kActivateWarps * kOutputs);
      const auto rows_of = [&](int n, int (&which)[kOutputs]) {
#pragma unroll
        for (int i = 0; i < kOutputs; ++i)
          which[i] = min(half * kNeuronsOfBlock + n + i, args.num_neurons - 1);
      };
      // Both rounds' weights are under way while x is staged.
      WeightBatch<Format, kOutputs> batches[2];
#pragma unroll
      for (int round = 0; round < 2; ++round) {
        int which[kOutputs];
        rows_of((round * kActivateWarps + warp) * kOutputs, which);
        batches[round].Load(w, which, lane);
      }
      StageRows<Format::kElems, R>(in, row0, rows, static_cast<int>(w.columns), padded, xs);
#pragma unroll
      for (int round = 0; round < 2; ++round) {
        const int n = (round * kActivateWarps + warp) * kOutputs;
        int which[kOutputs];
        rows_of(n, which);
        float acc[kOutputs][R];
        WarpDots<Format, kOutputs, R>(w, which, xs, batches[round], acc);
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
  const LayerTable& table = header.tables[args.layer];
  const uint64_t seed = HashLayerSeed(static_cast<uint64_t>(header.epoch),
                                      static_cast<uint64_t>(args.layer));
  const int neuron = half * kNeuronsOfBlock + lane;
  uint32_t below_cut = 0;  // bits of ids below it
  if (cut > half * kNeuronsOfBlock) {
    const int ids = cut - half * kNeuronsOfBlock;
    below_cut = ids >= 32 ? 0xffffffffu : (1u << ids) - 1;
  }
  below_cut &= reinterpret_cast<const uint32_t*>(table.cold)[half];
  unsigned long long owed = 0;
  unsigned int active = 0, hot = 0, below = 0;
  uint32_t named = 0;  // rows of this lane's neuron that the predictor named
  for (int r = warp; r < rows; r += kActivateWarps) {
    const StepRow& what = args.step.rows[row0 + r];
    const bool on = neuron < args.num_neurons && (all || what.exact != 0 || fires[r][lane] != 0);
    const uint32_t bits = __ballot_sync(0xffffffffu, on);
    if (on) owed += what.key * HashNeuron(seed, static_cast<uint64_t>(neuron));
    if (on && !all && what.exact == 0) ++named;
    if (lane == 0) {
      const int64_t at = int64_t{row0 + r} * words * 2 + half;
      reinterpret_cast<uint32_t*>(args.active)[at] = bits;
      if (slot != nullptr) reinterpret_cast<uint32_t*>(slot + ring.active_offset)[at] = bits;
      active += __popc(bits);
      hot += __popc(bits & reinterpret_cast<const uint32_t*>(table.hot)[half]);
      below += __popc(bits & below_cut);
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
    if (below != 0) atomicAdd(&state.cold_below_cut, below);
  }
  // At this device's scope: the last block's fence, of the system's, covers what it saw of others'.
  if (lane == 0) __threadfence();
  __syncthreads();
  __shared__ bool last;
  if (threadIdx.x == 0) {
    const uint32_t tiles = (header.num_rows + R - 1) / R;
    last = atomicAdd(&state.arrived, 1u) == gridDim.x * tiles - 1;
    __threadfence();
  }
  __syncthreads();
  if (last) PostLayer(args, slot, cut);
  // Counting comes after what the cpu side waits for.
  if (kPredict && named != 0) atomicAdd(args.predicted + neuron, named);
}

}  // namespace

void LaunchActivate(const ActivateArgs& args, int max_rows, cudaStream_t stream) {
  const int halves = 2 * ((args.num_neurons + 63) / 64);
  ForRowTile(max_rows, [&](auto tile) {
    constexpr int R = decltype(tile)::value;
    const dim3 grid(static_cast<unsigned>(halves), (max_rows + R - 1) / R);
    if (args.fc2.rows == 0) {
      ActivateKernel<F16Format, R, false><<<grid, kActivateThreads, 0, stream>>>(args);
      return;
    }
    ForFormat(args.fc2.dtype, [&](auto format) {
      const auto kernel = ActivateKernel<decltype(format), R, true>;
      const int shared = static_cast<int>(R * args.fc2.padded_columns * sizeof(float));
      AllowShared(kernel, shared);
      kernel<<<grid, kActivateThreads, shared, stream>>>(args);
    });
  });
}

}  // namespace isotherm::gpu
