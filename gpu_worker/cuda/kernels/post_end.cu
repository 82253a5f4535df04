#include "common/shm/control_layout.h"
#include "gpu_worker/cuda/kernels/device_math.cuh"
#include "gpu_worker/cuda/kernels/kernels.h"

namespace isotherm::gpu {
namespace {

constexpr int32_t kEndOfStep = -1;  // as a post's layer

// One thread. The next post's slot has to be free, too, since posts of layers do not look: earlier
// layers' were answered, but ends of steps are answered by and by.
__global__ void PostEndKernel(StepPointers step) {
  const StepHeader& header = *step.header;
  const SlotRing& ring = header.ring;
  StepState& state = *step.state;
  if (ring.base == nullptr || state.failure != kStepOk || header.num_rows == 0) return;
  const uint64_t sequence = state.next_sequence;
  const auto slot_of = [&](uint64_t s) {
    return ring.base + ring.slots_offset +
           static_cast<int64_t>(s & ring.slot_mask) * ring.slot_stride;
  };
  const uint64_t num_slots = ring.slot_mask + 1;
  // SlotResult: taken, then the sequence on its own line of 64 bytes.
  const unsigned char* const next = slot_of(sequence + 1) + ring.result_offset + 64;
  const uint64_t deadline = state.start_ns + static_cast<uint64_t>(header.time_left_ns);
  for (uint32_t polls = 1; LoadAcquireSystem(next) != sequence + 1 - num_slots; ++polls) {
    if (polls % 16 != 0) continue;
    // Nobody is left to be told; the host sees the same words.
    if (LoadSystem32(ring.base + ring.own_abort_offset) != 0 ||
        LoadSystem32(ring.base + ring.peer_abort_offset) != 0)
      return;
    if (GlobalTimer() > deadline) {
      state.failure = kStepDeadline;
      return;
    }
  }
  unsigned char* const slot = slot_of(sequence);
  const int64_t left = static_cast<int64_t>(deadline - GlobalTimer());
  auto& fields = *reinterpret_cast<shm::RequestFields*>(slot + 64);
  fields.nonce_high = ring.nonce_high;
  fields.nonce_low = ring.nonce_low;
  fields.sequence = sequence;
  fields.step_id = header.step_id;
  fields.epoch = header.epoch;
  fields.layer = kEndOfStep;
  fields.attempt = header.attempt;
  fields.num_rows = 0;
  fields.cut = 0;
  fields.time_left_us = left > 0 ? left / 1000 : 0;
  __threadfence_system();
  StoreReleaseSystem(slot, sequence);
  state.next_sequence = sequence + 1;
}

}  // namespace

void LaunchPostEnd(const StepPointers& step, cudaStream_t stream) {
  PostEndKernel<<<1, 1, 0, stream>>>(step);
}

}  // namespace isotherm::gpu
