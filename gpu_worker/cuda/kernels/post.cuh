#pragma once

#include "common/shm/control_layout.h"
#include "gpu_worker/cuda/kernels/device_math.cuh"
#include "gpu_worker/cuda/kernels/kernels.h"

// The post of a layer to the cpu side.
namespace isotherm::gpu {

struct PostArgs {
  StepPointers step;
  int32_t layer = 0;
  int32_t num_neurons = 0;
  const uint64_t* active = nullptr;  // [rows, words]
};

// The slot that a layer's post goes to; null when cold neurons are this side's own.
__device__ inline unsigned char* SlotOf(const StepPointers& step, int32_t layer) {
  const SlotRing& ring = step.header->ring;
  if (ring.base == nullptr || (step.layers[layer].flags & kLayerGpuOnly) != 0) return nullptr;
  return ring.base + ring.slots_offset +
         static_cast<int64_t>(step.state->next_sequence & ring.slot_mask) * ring.slot_stride;
}

// Popcount over the block's threads of what `word(w)` gives for each word.
template <class Word>
__device__ inline uint32_t CountBits(int words, const Word& word, uint32_t* scratch) {
  uint32_t count = 0;
  for (int w = threadIdx.x; w < words; w += blockDim.x)
    count += static_cast<uint32_t>(__popcll(word(w)));
  return BlockSum(count, scratch);
}

// By the whole last block: the post to the cpu side, if any of its neurons is active. z and the
// bitmaps are in the slot already.
__device__ inline void PostLayer(const PostArgs& args, unsigned char* slot, int cut) {
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
    const uint32_t hot = CountBits(
        words, [&](int w) { return together(w) & table.hot[w]; }, scratch);
    if (threadIdx.x == 0) {
      args.step.traces[args.layer].active = static_cast<int32_t>(active);
      args.step.traces[args.layer].hot = static_cast<int32_t>(hot);
      args.step.traces[args.layer].read = 0;
    }
  }
  const uint32_t below = __ldcg(&state.cold_below_cut);
  const bool post = slot != nullptr && below > 0 && state.failure == kStepOk;
  if (post) {
    const SlotRing& ring = header.ring;
    auto* const keys = reinterpret_cast<int32_t*>(slot + ring.row_keys_offset);
    for (int r = threadIdx.x; r < rows; r += static_cast<int>(blockDim.x)) keys[r] = r;
    __threadfence();
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  state.posted = post ? 1 : 0;
  state.arrived = 0;
  state.cold_below_cut = 0;
  if (trace) args.step.traces[args.layer].activated = GlobalTimer();
  // Whoever waits for the answer has begun already.
  const auto let_wait = [&] {
    AnnounceLayers(&state.posted_layers, static_cast<uint32_t>(args.layer) + 1);
  };
  if (!post) return let_wait();
  const uint64_t sequence = state.next_sequence;
  const int64_t left = header.time_left_ns - static_cast<int64_t>(GlobalTimer() - state.start_ns);
  auto& fields = *reinterpret_cast<shm::RequestFields*>(slot + 64);
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
  // Covers what other blocks wrote to the slot, too: the last block has seen all of them arrive.
  StoreReleaseSystem(slot, sequence);
  state.posted_ns = GlobalTimer();
  if (trace) args.step.traces[args.layer].posted = state.posted_ns;
  let_wait();
}

}  // namespace isotherm::gpu
