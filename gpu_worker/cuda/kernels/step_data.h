#pragma once

#include <cstdint>

// What the host tells the kernels about a step and what they tell each other and the host. Plain
// data, read by device code: a captured graph holds addresses of these alone, so that nothing about
// a step, a placement or an attachment is captured.
namespace isotherm::gpu {

// Which neurons of one layer are hot in an epoch; device addresses.
struct LayerTable {
  const uint64_t* hot = nullptr;       // [words]
  const uint64_t* cold = nullptr;      // [words]
  const int32_t* hot_ids = nullptr;    // [num_hot], ascending
  const int32_t* hot_slots = nullptr;  // [num_hot], of the pool
  int32_t num_hot = 0;
  int32_t reserved = 0;
};

// Modes of a layer in a step.
enum LayerFlags : int32_t {
  kLayerExact = 1,    // every neuron of every row is active
  kLayerGpuOnly = 2,  // cold neurons are computed on this side
  kLayerTrace = 4,
};

struct LayerStep {
  int32_t flags = 0;
  int32_t cut = 0;  // cold ids from here on are this side's
};

// The layer slots shared with the cpu side (common/shm/control_layout.h); all null without one.
struct SlotRing {
  unsigned char* base = nullptr;  // of the region, device address
  int64_t slots_offset = 0, slot_stride = 0;
  int64_t z_offset = 0, active_offset = 0, row_keys_offset = 0;  // from a slot's start
  int64_t result_offset = 0, partial_offset = 0;
  int64_t own_abort_offset = 0, peer_abort_offset = 0;  // 32-bit words, from the base
  uint64_t slot_mask = 0;                               // num_slots - 1
  uint64_t nonce_high = 0, nonce_low = 0;
};

// Written by the host before a step.
struct StepHeader {
  int32_t num_rows = 0;
  int32_t num_logits = 0;  // rows whose logits are wanted
  int32_t max_pages = 0;   // stride of the page table
  int32_t attempt = 0;
  // Begun before the step ahead of it had ended: goes on from the sequence and the tokens that one
  // left, and does nothing if it failed or sampled a stop token, or if by then the host has
  // withdrawn the step of this number.
  int32_t follows = 0;
  int32_t number = 0;
  int64_t step_id = 0;
  int64_t epoch = 0;
  int64_t time_left_ns = 0;    // from when the device begins it
  uint64_t next_sequence = 0;  // of the next post
  const LayerTable* tables = nullptr;
  const unsigned char* const* arena = nullptr;  // each layer's bundles, as mapped; null: none
  SlotRing ring;                                // base null: no cpu side
};

struct StepRow {
  int32_t token = 0;  // below 0: what the row of this number sampled in the step ahead
  int32_t position = 0;
  int32_t table = 0;  // row of the page table
  int32_t exact = 0;
  uint64_t key = 0;  // of the work hash
};

// How a row that samples does it (PlainDraw of engine/sampler.h).
struct SampleRow {
  int32_t on_device = 0;  // 0: the host reads its logits
  int32_t greedy = 0;
  float inverse_temperature = 1;
  float floor = 0;
  int32_t top_k = 0;
  float top_p = 1;
  uint64_t bits = 0;
  // A step that follows the one in which such a token is sampled does nothing. There may be more
  // than fit: what follows is then computed in vain.
  static constexpr int32_t kMostStops = 7;
  int32_t num_stops = 0;
  int32_t stops[kMostStops] = {};

  bool operator==(const SampleRow&) const = default;
};

enum StepFailure : int32_t {
  kStepOk = 0,
  kStepDeadline = 1,
  kStepAborted = 2,     // one side ended the attachment
  kStepStaleEpoch = 3,  // the cpu side does not know the epoch
  kStepPoisoned = 4,    // the cpu side failed or sent what no sound peer sends
  kStepNoColdSide = 5,  // cold neurons are active, and there is nobody to compute them
  kStepNoNumbers = 6,   // no logit of row failed_layer is a number, or one is infinite
  kStepNotBegun = 7,    // the step ahead failed or sampled a stop token, or this one was withdrawn
};

// Of a traced layer; nanoseconds of the device's clock.
struct LayerTrace {
  uint64_t begin = 0;      // the layer's first kernel
  uint64_t predict = 0;    // attention was done
  uint64_t activated = 0;  // the active set was known
  uint64_t posted = 0;     // the doorbell was rung
  uint64_t gpu_done = 0;   // this side's share was done
  uint64_t streamed = 0;   // the share read over PCIe was done
  uint64_t resumed = 0;    // both sides' shares were there
  uint64_t merged = 0;
  float cpu_us = 0;
  int32_t active = 0, hot = 0;  // of the rows' union
  int32_t read = 0;             // bundles read over PCIe
  int32_t reserved = 0;
};

// What a layer that was posted took each side from its post to its end; zero: not posted.
struct LayerTimes {
  uint32_t cpu_ns = 0, streamed_ns = 0;
};

// Written by the kernels, zero before a step, read by the host after it.
struct StepState {
  uint64_t start_ns = 0;
  uint64_t next_sequence = 0;
  int32_t failure = kStepOk;
  int32_t failed_layer = -1;
  uint64_t owed_hash = 0;
  uint64_t work_hash = 0;  // of neurons computed on this side
  uint64_t cold_hash = 0;  // of the cpu side's accepted results
  int64_t active_neurons = 0, hot_neurons = 0;
  int64_t open_neurons = 0;
  // Of the running layer.
  int32_t posted = 0;
  uint32_t cold_below_cut = 0;  // active, of all rows
  uint32_t arrived = 0;         // blocks of the activation kernel
  int32_t accepted = 0;         // where the cpu side's sums are that are to be added (merge.cu)
  uint32_t posted_layers = 0;   // layers that were posted or found to need no post
  uint32_t waited_layers = 0;   // layers whose wait is over
  uint32_t stopped = 0;         // a stop token was sampled
  int32_t reserved = 0;
  uint64_t accepted_sequence = 0;
  uint64_t posted_ns = 0;  // when its post was made
  uint64_t hot_end_ns = 0, streamed_end_ns = 0;
};

// The layers' times and the tokens sampled, 32 bits each, follow the state, so that one copy
// fetches all. Tokens stay until the next step samples.
inline constexpr int64_t StateBytes(int64_t num_layers, int64_t num_tokens) {
  return static_cast<int64_t>(sizeof(StepState)) +
         num_layers * static_cast<int64_t>(sizeof(LayerTimes)) + num_tokens * int64_t{4};
}
static_assert(sizeof(StepState) % alignof(LayerTimes) == 0);

}  // namespace isotherm::gpu
