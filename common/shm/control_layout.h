#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "absl/status/statusor.h"
#include "common/shm/process_identity.h"

// Bytes of a control region, layout version 1: a header page, each side's words, a ring of slots.
// Fixed widths, no pointer, no lock. Each word has one writer; words that different sides write
// never share a cache line. The region is made anew for every attachment and never reset.
namespace isotherm::shm {

inline constexpr uint64_t kControlMagic = 0x314c5443544f5349u;  // "ISOTCTL1"
inline constexpr uint32_t kControlVersion = 1;
inline constexpr int64_t kControlPage = 4096;

// Names one attachment of a gpu_worker to a cpu_worker; random.
struct Nonce {
  uint64_t high = 0;
  uint64_t low = 0;
  bool operator==(const Nonce&) const = default;
};

Nonce RandomNonce();

// Which shapes travel. The bounds are those of ControlGeometry::Make.
struct ControlShape {
  int32_t max_rows = 0;     // 1 to 4,096 of one post
  int32_t model_dim = 0;    // up to 2^20
  int32_t num_neurons = 0;  // of one layer, up to 2^24
  int32_t num_layers = 0;   // up to 65,536
  int32_t num_slots = 4;    // a power of two from 2 to 64
  bool operator==(const ControlShape&) const = default;
};

// Written by the creator before the region is handed over, by nobody after. Readers copy it once.
struct ControlHeader {
  uint64_t magic;
  uint32_t version;
  uint32_t header_bytes;
  uint64_t region_bytes;
  uint64_t layout_hash;  // of the bundles both sides compute with
  uint64_t nonce_high;
  uint64_t nonce_low;
  int32_t max_rows;
  int32_t model_dim;
  int32_t num_neurons;
  int32_t num_layers;
  int32_t num_slots;
  int32_t reserved;
  uint64_t first_sequence;  // of the first post
  int64_t creator_pid;
  uint64_t creator_start_ticks;
};
static_assert(sizeof(ControlHeader) == 96 && std::is_trivially_copyable_v<ControlHeader>);

// What one side tells the other beside the slots. All written by that side only.
struct SideWords {
  alignas(64) std::atomic<uint32_t> bell;       // counts events; the other side sleeps on it
  alignas(64) std::atomic<uint32_t> sleeps;     // 1: this side sleeps on the other's bell
  alignas(64) std::atomic<uint64_t> heartbeat;  // changes while this side is alive
  alignas(64) std::atomic<uint32_t> abort;      // not 0: this side left the attachment for good
  // gpu side: the work of posts up to this sequence is no longer wanted.
  alignas(64) std::atomic<uint64_t> cancelled_through;
  alignas(64) std::atomic<int64_t> pid;  // in its own PID namespace, for diagnosis
  std::atomic<uint64_t> start_ticks;
};
static_assert(sizeof(SideWords) == 384 && std::is_standard_layout_v<SideWords>);

// States of a slot whose turn is sequence s, told from words of both sides:
//   FREE    result.sequence == s - num_slots    the gpu side may fill it
//   FILLED  request.sequence == s               the cpu side may take it
//   TAKEN   result.taken == s                   the cpu side computes
//   DONE    result.sequence == s                the gpu side may read it; also POISON, by status
// Each sequence word is stored with release after what it announces and loaded with acquire before.

struct RequestFields {
  uint64_t nonce_high;
  uint64_t nonce_low;
  uint64_t sequence;
  int64_t step_id;
  int64_t epoch;
  int32_t layer;  // -1: the step ends, no payload
  int32_t attempt;
  int32_t num_rows;
  int32_t cut;
  int64_t time_left_us;  // when posted; clocks of two containers may differ
};
static_assert(sizeof(RequestFields) == 64 && std::is_trivially_copyable_v<RequestFields>);

// Written by the gpu side. The payload follows: z, active, row keys.
struct SlotRequest {
  alignas(64) std::atomic<uint64_t> sequence;
  alignas(64) RequestFields fields;
};
static_assert(sizeof(SlotRequest) == 128);

enum class WireStatus : int32_t { kDone = 1, kStaleEpoch = 2, kPoison = 3, kCancelled = 4 };

struct ResultFields {
  uint64_t nonce_high;
  uint64_t nonce_low;
  uint64_t sequence;
  int64_t step_id;
  int64_t epoch;
  int32_t layer;
  int32_t attempt;
  int32_t num_rows;
  int32_t status;  // WireStatus
  uint64_t work_hash;
  int64_t neurons;
  float compute_us;
  uint32_t reserved;
};
static_assert(sizeof(ResultFields) == 80 && std::is_trivially_copyable_v<ResultFields>);

// Written by the cpu side. The partial sums follow.
struct SlotResult {
  alignas(64) std::atomic<uint64_t> taken;
  alignas(64) std::atomic<uint64_t> sequence;
  alignas(64) ResultFields fields;
};
static_assert(sizeof(SlotResult) == 256);
static_assert(std::atomic<uint64_t>::is_always_lock_free &&
              std::atomic<uint32_t>::is_always_lock_free);

// Where everything lies; computed by each side from its own checked shape.
struct ControlGeometry {
  // InvalidArgument names the first field out of its bounds.
  static absl::StatusOr<ControlGeometry> Make(const ControlShape& shape);

  ControlShape shape;
  int64_t words_per_row = 0;  // of a bitmap
  // From a slot's start.
  int64_t z_offset = 0;
  int64_t active_offset = 0;
  int64_t row_keys_offset = 0;
  int64_t result_offset = 0;
  int64_t partial_offset = 0;
  int64_t slot_stride = 0;
  // From the region's start.
  int64_t gpu_words_offset = kControlPage;
  int64_t cpu_words_offset = kControlPage + 512;
  int64_t slots_offset = 2 * kControlPage;
  int64_t region_bytes = 0;
};

// Copies `words` 64-bit words that a peer may be changing, each loaded exactly once.
inline void SnapshotWords(void* to, const void* from, int64_t words) {
  using Word [[gnu::may_alias]] = uint64_t;
  const auto* source = static_cast<const Word*>(from);
  auto* target = static_cast<Word*>(to);
  for (int64_t i = 0; i < words; ++i) target[i] = __atomic_load_n(source + i, __ATOMIC_RELAXED);
}

// The same for a whole struct of 64-bit multiples.
template <typename T>
T Snapshot(const T& shared) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % 8 == 0);
  alignas(8) T copy;
  SnapshotWords(&copy, &shared, sizeof(T) / 8);
  return copy;
}

}  // namespace isotherm::shm
