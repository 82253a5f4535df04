#include "common/shm/control_layout.h"
#include "gpu_worker/cuda/kernels/product.cuh"

namespace isotherm::gpu {
namespace {

using shm::ResultFields;
using shm::WireStatus;

constexpr int kThreads = 1024;
constexpr int kColumnsOfBlock = 32;
constexpr int kGroups = kThreads / kColumnsOfBlock;  // share the partial sums of a column

// What the result of the awaited post says; kStepOk also when it is not there yet (`*there` tells).
__device__ int32_t ReadResult(const MergeArgs& args, const unsigned char* result, bool* there,
                              ResultFields* out) {
  const StepHeader& header = *args.step.header;
  const SlotRing& ring = header.ring;
  const uint64_t sequence = args.step.state->next_sequence;
  *there = false;
  // SlotResult: taken, sequence and fields, each on its own line of 64 bytes.
  if (LoadAcquireSystem(result + 64) != sequence) return kStepOk;
  auto* const words = reinterpret_cast<uint64_t*>(out);
#pragma unroll
  for (unsigned i = 0; i < sizeof(ResultFields) / 8; ++i) {
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];"
                 : "=l"(words[i])
                 : "l"(result + 128 + 8 * i)
                 : "memory");
  }
  if (out->nonce_high != ring.nonce_high || out->nonce_low != ring.nonce_low ||
      out->sequence != sequence || out->step_id != header.step_id || out->epoch != header.epoch ||
      out->layer != args.layer || out->attempt != header.attempt) {
    return kStepOk;  // not the answer to this post
  }
  *there = true;
  switch (static_cast<WireStatus>(out->status)) {
    case WireStatus::kDone:
      break;
    case WireStatus::kStaleEpoch:
      return kStepStaleEpoch;
    case WireStatus::kCancelled:
      return kStepDeadline;
    default:
      return kStepPoisoned;
  }
  const bool sound = out->num_rows == header.num_rows && out->neurons >= 0 &&
                     out->neurons <= int64_t{header.num_rows} * args.num_neurons;
  return sound ? kStepOk : kStepPoisoned;
}

// Until the answer is there, the deadline has passed or either side ended the attachment; a failed
// step waits no more. One thread.
__device__ void AwaitCold(const MergeArgs& args) {
  const StepHeader& header = *args.step.header;
  StepState& state = *args.step.state;
  const SlotRing& ring = header.ring;
  if (args.hot.sums == nullptr) state.hot_end_ns = state.streamed_end_ns = GlobalTimer();
  int32_t accepted = 0;
  LayerTimes times;
  if (state.posted != 0 && state.failure == kStepOk) {
    const uint64_t sequence = state.next_sequence;
    const unsigned char* const result =
        ring.base + ring.slots_offset +
        static_cast<int64_t>(sequence & ring.slot_mask) * ring.slot_stride + ring.result_offset;
    const uint64_t deadline = state.start_ns + static_cast<uint64_t>(header.time_left_ns);
    ResultFields fields;
    int32_t failure = kStepOk;
    uint32_t polls = 0;
    for (;; ++polls) {
      bool there = false;
      failure = ReadResult(args, result, &there, &fields);
      if (there) break;
      if (polls % 16 == 15) {
        if (LoadSystem32(ring.base + ring.own_abort_offset) != 0 ||
            LoadSystem32(ring.base + ring.peer_abort_offset) != 0) {
          failure = kStepAborted;
        } else if (GlobalTimer() > deadline) {
          failure = kStepDeadline;
        }
        if (failure != kStepOk) break;
      }
    }
    if (failure == kStepOk) {
      accepted = 1;
      state.accepted_sequence = sequence;
      state.cold_hash += fields.work_hash;
      // Who was waited for ended just now; who was not, when it says, and some way there and back.
      constexpr uint64_t kHandoffNs = 8000;
      const uint64_t cpu_ns = polls > 1
                                  ? GlobalTimer() - state.posted_ns
                                  : static_cast<uint64_t>(fields.compute_us * 1000.0f) + kHandoffNs;
      if (state.streamed_end_ns > state.posted_ns) {
        times = {.cpu_ns = static_cast<uint32_t>(min(cpu_ns, uint64_t{0xffffffffu})),
                 .streamed_ns = static_cast<uint32_t>(
                     min(state.streamed_end_ns - state.posted_ns, uint64_t{0xffffffffu}))};
      }
      args.step.traces[args.layer].cpu_us = fields.compute_us;
    } else {
      state.failure = failure;
      state.failed_layer = args.layer;
    }
    state.next_sequence = sequence + 1;
    state.posted = 0;
  }
  state.accepted = accepted;
  args.step.times[args.layer] = times;
  if ((args.step.layers[args.layer].flags & kLayerTrace) != 0) {
    LayerTrace& trace = args.step.traces[args.layer];
    trace.gpu_done = state.hot_end_ns;
    trace.streamed = state.streamed_end_ns;
    trace.resumed = GlobalTimer();
  }
}

// The first block of the first row waits for the cpu side. Of the others each takes kColumnsOfBlock
// columns of a row, adds this side's sums and then waits for that block.
__global__ void __launch_bounds__(kThreads)
    MergeKernel(MergeArgs args, int tile_rows, int hot_blocks, int streamed_blocks) {
  LetNextBegin();
  AwaitPrevious();
  const StepHeader& header = *args.step.header;
  StepState& state = *args.step.state;
  const int row = blockIdx.y, dim = args.model_dim;
  if (row >= header.num_rows) return;
  const auto awaited = static_cast<uint32_t>(args.layer) + 1;
  if (blockIdx.x == 0) {
    if (row != 0 || threadIdx.x != 0) return;
    AwaitCold(args);
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(&state.waited_layers), "r"(awaited)
                 : "memory");
    return;
  }
  const int tile = row / tile_rows;
  const int column =
      (static_cast<int>(blockIdx.x) - 1) * kColumnsOfBlock + threadIdx.x % kColumnsOfBlock;
  const int group = threadIdx.x / kColumnsOfBlock;
  const int64_t stride = int64_t{tile_rows} * dim;
  float sum = 0;
  const auto add = [&](const float* partial, int computed, int blocks) {
    const int used = min(computed, blocks);
    const float* const from =
        partial + int64_t{tile} * blocks * stride + int64_t{row % tile_rows} * dim + column;
#pragma unroll 4
    for (int b = group; b < used; b += kGroups) sum += __ldcg(from + b * stride);
  };
  if (column < dim && args.hot.sums != nullptr) {
    add(args.hot.sums, args.hot.computed[tile], hot_blocks);
    add(args.streamed.sums, args.streamed.computed[tile], streamed_blocks);
  }
  __shared__ float sums[kGroups][kColumnsOfBlock];
  sums[group][threadIdx.x % kColumnsOfBlock] = sum;
  if (threadIdx.x == 0) {
    uint32_t seen = 0;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                   : "=r"(seen)
                   : "l"(&state.waited_layers)
                   : "memory");
    } while (seen < awaited);
  }
  __syncthreads();
  bool bad = false;
  if (group == 0 && column < dim) {
    float* const x = args.x + int64_t{row} * dim + column;
    float total = *x;
    for (int g = 0; g < kGroups; ++g) total += sums[g][threadIdx.x];
    if (args.bias != nullptr) total += args.bias[column];
    if (__ldcg(&state.accepted) != 0) {
      const SlotRing& ring = header.ring;
      const uint64_t sequence = __ldcg(&state.accepted_sequence);
      const auto* const cold = reinterpret_cast<const float*>(
          ring.base + ring.slots_offset +
          static_cast<int64_t>(sequence & ring.slot_mask) * ring.slot_stride + ring.partial_offset);
      const float part = __ldcv(cold + int64_t{row} * dim + column);
      bad = !isfinite(part);
      total += part;
    }
    *x = total;
  }
  if (bad) {
    state.failure = kStepPoisoned;
    state.failed_layer = args.layer;
  }
  if (blockIdx.x == 1 && row == 0 && threadIdx.x == 0 &&
      (args.step.layers[args.layer].flags & kLayerTrace) != 0) {
    args.step.traces[args.layer].merged = GlobalTimer();
  }
}

}  // namespace

void LaunchMerge(const MergeArgs& args, int max_rows, cudaStream_t stream) {
  const RowTiling tiling = TilingOf(max_rows);
  const int blocks = 1 + (args.model_dim + kColumnsOfBlock - 1) / kColumnsOfBlock;
  LaunchEarly(MergeKernel, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(max_rows)),
              kThreads, 0, stream, args.early, args, tiling.rows, tiling.BlocksOfTile(kHotBlocks),
              tiling.BlocksOfTile(kStreamBlocks));
}

}  // namespace isotherm::gpu
