#include "common/shm/control_layout.h"
#include "gpu_worker/cuda/kernels/product.cuh"

namespace isotherm::gpu {
namespace {

using shm::ResultFields;
using shm::WireStatus;

constexpr int kThreads = 1024;
constexpr int kColumnsOfBlock = 32;
constexpr int kGroups = kThreads / kColumnsOfBlock;  // share the partial sums of a column
static_assert(kFetchedFloats % (4 * kThreads) == 0);

enum Accepted : int32_t { kNothing = 0, kInSlot = 1, kCopied = 2 };  // StepState::accepted

// What came of the wait for the cpu side.
struct Answer {
  int32_t failure = kStepOk;
  bool posted = false;  // else there was nothing to wait for
  bool there = false;
  uint64_t sequence = 0, hash = 0;
  uint64_t seen_ns = 0;
  float compute_us = 0;
};

// The awaited post's SlotResult: taken, sequence and fields, each on its own line of 64 bytes.
__device__ const unsigned char* ResultOf(const SlotRing& ring, uint64_t sequence) {
  return ring.base + ring.slots_offset +
         static_cast<int64_t>(sequence & ring.slot_mask) * ring.slot_stride + ring.result_offset;
}

// What will be waited for, once the layer was posted or found to need no post. One thread.
__device__ Answer BeginWait(const MergeArgs& args) {
  const StepState& state = *args.step.state;
  AwaitLayers(&state.posted_layers, static_cast<uint32_t>(args.layer) + 1);
  Answer out;
  out.posted = state.posted != 0 && state.failure == kStepOk;
  out.sequence = state.next_sequence;
  return out;
}

// Whether the deadline has passed or either side ended the attachment. One thread.
__device__ bool GivesUp(const MergeArgs& args, Answer* answer) {
  const StepHeader& header = *args.step.header;
  const SlotRing& ring = header.ring;
  if (LoadSystem32(ring.base + ring.own_abort_offset) != 0 ||
      LoadSystem32(ring.base + ring.peer_abort_offset) != 0) {
    answer->failure = kStepAborted;
  } else if (GlobalTimer() >
             args.step.state->start_ns + static_cast<uint64_t>(header.time_left_ns)) {
    answer->failure = kStepDeadline;
  }
  return answer->failure != kStepOk;
}

// Until the sequence of an answer is there, or it gives up. One thread.
__device__ void AwaitSequence(const MergeArgs& args, Answer* answer) {
  const unsigned char* const sequence = ResultOf(args.step.header->ring, answer->sequence) + 64;
  for (uint32_t polls = 1; LoadAcquireSystem(sequence) != answer->sequence; ++polls) {
    if (polls % 16 == 0 && GivesUp(args, answer)) return;
  }
}

// What the result says whose sequence was seen. One that is not this post's answer is not there.
__device__ void ReadResult(const MergeArgs& args, Answer* answer) {
  const StepHeader& header = *args.step.header;
  const SlotRing& ring = header.ring;
  const unsigned char* const from = ResultOf(ring, answer->sequence) + 128;
  ResultFields fields;
  auto* const words = reinterpret_cast<uint64_t*>(&fields);
#pragma unroll
  for (unsigned i = 0; i < sizeof(ResultFields) / 8; ++i) {
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];"
                 : "=l"(words[i])
                 : "l"(from + 8 * i)
                 : "memory");
  }
  if (fields.nonce_high != ring.nonce_high || fields.nonce_low != ring.nonce_low ||
      fields.sequence != answer->sequence || fields.step_id != header.step_id ||
      fields.epoch != header.epoch || fields.layer != args.layer ||
      fields.attempt != header.attempt) {
    return;
  }
  answer->there = true;
  answer->hash = fields.work_hash;
  answer->compute_us = fields.compute_us;
  answer->seen_ns = GlobalTimer();
  switch (static_cast<WireStatus>(fields.status)) {
    case WireStatus::kDone:
      break;
    case WireStatus::kStaleEpoch:
      answer->failure = kStepStaleEpoch;
      return;
    case WireStatus::kCancelled:
      answer->failure = kStepDeadline;
      return;
    default:
      answer->failure = kStepPoisoned;
      return;
  }
  const bool sound = fields.num_rows == header.num_rows && fields.neurons >= 0 &&
                     fields.neurons <= int64_t{header.num_rows} * args.num_neurons;
  if (!sound) answer->failure = kStepPoisoned;
}

// Where the cpu side left its sums.
__device__ const float* ColdSums(const MergeArgs& args, uint64_t sequence) {
  const SlotRing& ring = args.step.header->ring;
  return reinterpret_cast<const float*>(
      ring.base + ring.slots_offset +
      static_cast<int64_t>(sequence & ring.slot_mask) * ring.slot_stride + ring.partial_offset);
}

// Lets the other blocks go on, when this side's share has ended too. One thread.
__device__ void Accept(const MergeArgs& args, const Answer& answer, bool copied, uint64_t began) {
  StepState& state = *args.step.state;
  if (args.hot.sums == nullptr) state.hot_end_ns = state.streamed_end_ns = began;
  LayerTimes times;
  state.accepted = kNothing;
  if (answer.posted) {
    if (answer.failure == kStepOk) {
      state.accepted = copied ? kCopied : kInSlot;
      state.accepted_sequence = answer.sequence;
      state.cold_hash += answer.hash;
      if (state.streamed_end_ns > state.posted_ns) {
        // Who was waited for ended when its answer was seen. Who was not, when it says, and some
        // way there and back: beside what is streamed its answer takes long to be seen.
        constexpr uint64_t kHandoffNs = 12000, kSeeingNs = 5000;
        const uint64_t cpu_ns =
            answer.seen_ns > state.streamed_end_ns + kSeeingNs
                ? answer.seen_ns - state.posted_ns
                : static_cast<uint64_t>(answer.compute_us * 1000.0f) + kHandoffNs;
        const auto fit = [](uint64_t ns) {
          return static_cast<uint32_t>(min(ns, uint64_t{0xffffffffu}));
        };
        times = {.cpu_ns = fit(cpu_ns),
                 .streamed_ns = fit(state.streamed_end_ns - state.posted_ns)};
      }
      args.step.traces[args.layer].cpu_us = answer.compute_us;
    } else {
      state.failure = answer.failure;
      state.failed_layer = args.layer;
    }
    state.next_sequence = answer.sequence + 1;
    state.posted = 0;
  }
  args.step.times[args.layer] = times;
  if ((args.step.layers[args.layer].flags & kLayerTrace) != 0) {
    LayerTrace& trace = args.step.traces[args.layer];
    trace.gpu_done = state.hot_end_ns;
    trace.streamed = state.streamed_end_ns;
    trace.resumed = GlobalTimer();
  }
  AnnounceLayers(&state.waited_layers, static_cast<uint32_t>(args.layer) + 1);
}

// The block that waits for the cpu side, beside the kernels that compute this side's share: it has
// begun when the layer is posted, which says that nobody reads the last layer's sums any more.
// Those of few rows it fetches, while it looks at what else the answer says.
__device__ void WaitingBlock(const MergeArgs& args) {
  const uint64_t began = GlobalTimer();
  const int64_t floats = int64_t{args.step.header->num_rows} * args.model_dim;
  // Behind everything else all blocks fetch sooner than one.
  const bool fetches = args.early && floats <= kFetchedFloats;
  __shared__ uint64_t sequence;
  __shared__ bool seen, over;
  Answer answer;
  if (threadIdx.x == 0) {
    answer = BeginWait(args);
    sequence = answer.sequence;
  }
  do {
    if (threadIdx.x == 0) {
      if (answer.posted) AwaitSequence(args, &answer);
      seen = answer.posted && answer.failure == kStepOk;
    }
    __syncthreads();
    constexpr int kEach = kFetchedFloats / 4 / kThreads;
    float4 sums[kEach];
    if (seen && fetches) {
      const auto* const from = reinterpret_cast<const float4*>(ColdSums(args, sequence));
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int at = i * kThreads + static_cast<int>(threadIdx.x);
        if (4 * at < floats) sums[i] = __ldcv(from + at);
      }
    }
    if (threadIdx.x == 0) {
      if (seen) ReadResult(args, &answer);
      over = !seen || answer.there || GivesUp(args, &answer);
    }
    if (seen && fetches) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int at = i * kThreads + static_cast<int>(threadIdx.x);
        if (4 * at < floats) reinterpret_cast<float4*>(args.cold)[at] = sums[i];
      }
      __threadfence();
    }
    __syncthreads();
  } while (!over);
  AwaitPrevious();
  if (threadIdx.x == 0) Accept(args, answer, fetches, began);
}

// The first block of the first row waits for the cpu side. Of the others each takes kColumnsOfBlock
// columns of a row, adds this side's sums and then waits for that block.
__global__ void __launch_bounds__(kThreads)
    MergeKernel(MergeArgs args, int tile_rows, int hot_blocks, int streamed_blocks) {
  LetNextBegin();
  const StepHeader& header = *args.step.header;
  StepState& state = *args.step.state;
  const int row = blockIdx.y, dim = args.model_dim;
  if (row >= header.num_rows || (blockIdx.x == 0 && row != 0)) return AwaitPrevious();
  if (blockIdx.x == 0) return WaitingBlock(args);
  AwaitPrevious();
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
  if (threadIdx.x == 0) AwaitLayers(&state.waited_layers, static_cast<uint32_t>(args.layer) + 1);
  __syncthreads();
  bool bad = false;
  if (group == 0 && column < dim) {
    float* const x = args.x + int64_t{row} * dim + column;
    float total = *x;
    for (int g = 0; g < kGroups; ++g) total += sums[g][threadIdx.x];
    if (args.bias != nullptr) total += args.bias[column];
    const int32_t accepted = __ldcg(&state.accepted);
    if (accepted != kNothing) {
      const int64_t at = int64_t{row} * dim + column;
      const float part = accepted == kCopied
                             ? __ldcg(args.cold + at)
                             : __ldcv(ColdSums(args, __ldcg(&state.accepted_sequence)) + at);
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
