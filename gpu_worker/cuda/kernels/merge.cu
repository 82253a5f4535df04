#include "common/shm/control_layout.h"
#include "gpu_worker/cuda/kernels/product.cuh"

namespace isotherm::gpu {
namespace {

using shm::ResultFields;
using shm::WireStatus;

constexpr int kThreads = 1024;

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

// One block: waits, checks, adds. The wait ends with the answer, the deadline, or when either side
// ends the attachment; a failed step waits no more.
__global__ void __launch_bounds__(kThreads) MergeKernel(MergeArgs args) {
  const StepHeader& header = *args.step.header;
  StepState& state = *args.step.state;
  const SlotRing& ring = header.ring;
  const bool trace = (args.step.layers[args.layer].flags & kLayerTrace) != 0;
  __shared__ int accepted;
  const unsigned char* result = nullptr;
  if (threadIdx.x == 0) {
    accepted = 0;
    if (state.posted != 0 && state.failure == kStepOk) {
      const uint64_t sequence = state.next_sequence;
      result = ring.base + ring.slots_offset +
               static_cast<int64_t>(sequence & ring.slot_mask) * ring.slot_stride +
               ring.result_offset;
      const uint64_t deadline = state.start_ns + static_cast<uint64_t>(header.time_left_ns);
      ResultFields fields;
      int32_t failure = kStepOk;
      for (uint32_t polls = 0;; ++polls) {
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
        state.cold_hash += fields.work_hash;
        state.cpu_ns += static_cast<uint64_t>(fields.compute_us * 1000.0f);
        if (trace) args.step.traces[args.layer].cpu_us = fields.compute_us;
      } else {
        state.failure = failure;
        state.failed_layer = args.layer;
      }
      state.next_sequence = sequence + 1;
      state.posted = 0;
    }
    if (trace) args.step.traces[args.layer].resumed = GlobalTimer();
  }
  __syncthreads();
  const int64_t count = int64_t{header.num_rows} * args.model_dim;
  const float* cold = nullptr;
  if (accepted != 0) {
    const uint64_t sequence = state.next_sequence - 1;
    cold = reinterpret_cast<const float*>(
        ring.base + ring.slots_offset +
        static_cast<int64_t>(sequence & ring.slot_mask) * ring.slot_stride + ring.partial_offset);
  }
  bool bad = false;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    float sum = args.x[i];
    if (args.streamed != nullptr) sum += args.streamed[i];
    if (args.bias != nullptr) sum += args.bias[i % args.model_dim];
    if (cold != nullptr) {
      const float part = __ldcv(cold + i);
      bad |= !isfinite(part);
      sum += part;
    }
    args.x[i] = sum;
  }
  if (__syncthreads_or(bad) != 0 && threadIdx.x == 0) {
    state.failure = kStepPoisoned;
    state.failed_layer = args.layer;
  }
  if (trace && threadIdx.x == 0) args.step.traces[args.layer].merged = GlobalTimer();
}

}  // namespace

void LaunchMerge(const MergeArgs& args, int max_rows, cudaStream_t stream) {
  MergeKernel<<<1, kThreads, 0, stream>>>(args);
}

}  // namespace isotherm::gpu
