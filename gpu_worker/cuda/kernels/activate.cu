#include <type_traits>

#include "gpu_worker/cuda/kernels/post.cuh"
#include "gpu_worker/cuda/kernels/product.cuh"

namespace isotherm::gpu {
namespace {

constexpr int kActivateThreads = 128;
constexpr int kActivateWarps = kActivateThreads / kWarp;
constexpr int kNeuronsOfBlock = kWarp;  // half a word of the bitmap

// A block makes half a word (32 neurons) of R rows' bitmaps.
template <class Format, int R, bool kPredict>
__global__ void __launch_bounds__(kActivateThreads) ActivateKernel(ActivateArgs args) {
  const StepHeader& header = *args.step.header;
  LetNextBegin();
  const int row0 = blockIdx.y * R;
  const int rows = min(R, header.num_rows - row0);
  if (rows <= 0) return AwaitPrevious();
  const LayerStep& layer = args.step.layers[args.layer];
  const int words = (args.num_neurons + 63) / 64;
  const int half = blockIdx.x;  // of the row's bitmap
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const SlotRing& ring = header.ring;
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
      const auto rows_of = [&](int n, int(&which)[kOutputs]) {
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
      AwaitPrevious();
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
  if (all) AwaitPrevious();
  unsigned char* const slot = args.posts ? SlotOf(args.step, args.layer) : nullptr;
  const int cut = slot != nullptr ? layer.cut : 0;
  const LayerTable& table = header.tables[args.layer];
  const uint64_t seed =
      HashLayerSeed(static_cast<uint64_t>(header.epoch), static_cast<uint64_t>(args.layer));
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
  if (last) {
    PostLayer({.step = args.step,
               .layer = args.layer,
               .num_neurons = args.num_neurons,
               .active = args.active},
              slot, cut);
  }
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
      LaunchEarly(ActivateKernel<F16Format, R, false>, grid, kActivateThreads, 0, stream, true,
                  args);
      return;
    }
    ForFormat(args.fc2.dtype, [&](auto format) {
      const auto kernel = ActivateKernel<decltype(format), R, true>;
      const int shared = static_cast<int>(R * args.fc2.padded_columns * sizeof(float));
      AllowShared(kernel, shared);
      LaunchEarly(kernel, grid, kActivateThreads, shared, stream, true, args);
    });
  });
}

}  // namespace isotherm::gpu
