#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/kernels/sparse_ffn.h"

namespace isotherm::shm {
class SlotClient;
}

namespace isotherm::gpu {

using TimePoint = std::chrono::steady_clock::time_point;

// What the cold side needs to know of one layer.
struct ColdLayer {
  int64_t step_id = 0;
  int64_t epoch = 0;
  int32_t layer = 0;
  int32_t attempt = 0;
  int32_t num_rows = 0;
  int32_t cut = 0;                    // cold ids from the cut on are this side's
  const uint16_t* z = nullptr;        // [num_rows, model_dim], F16 or BF16
  const uint64_t* active = nullptr;   // [num_rows, words]
  const int32_t* row_keys = nullptr;  // [num_rows]
  TimePoint deadline;
};

struct ColdResult {
  const float* partial = nullptr;  // [num_rows, model_dim]; valid until the next Post
  uint64_t work_hash = 0;
  int64_t neurons = 0;
  float compute_us = 0;
  bool was_ready = false;  // it had come before it was waited for
};

// The cpu_worker as the gpu_worker's device sees it: shared-memory slots or a gRPC stream. Used by
// the engine thread alone; one post is open at a time. After Unavailable or Internal the link is
// over.
class ColdLink {
 public:
  virtual ~ColdLink() = default;
  virtual bool alive() const = 0;
  // The nonce that work hashes are keyed with on both sides.
  virtual uint64_t hash_nonce() const = 0;
  virtual absl::Status Post(const ColdLayer& layer) = 0;
  virtual absl::StatusOr<ColdResult> Wait(TimePoint deadline) = 0;
  // No layer of the step follows; no answer comes.
  virtual absl::Status EndOfStep(int64_t step_id, int64_t epoch, int32_t attempt,
                                 TimePoint deadline) = 0;
  // The layer slots in shared memory, for a device that posts and waits by itself; null when the
  // link has none.
  virtual shm::SlotClient* slots() { return nullptr; }
};

// Every neuron of the model, mapped or owned; read-only.
class NeuronStore {
 public:
  virtual ~NeuronStore() = default;
  virtual BundleView Layer(int64_t layer) const = 0;
  // The memory that holds all layers, whole pages, for a device to map; empty when it is not in one
  // piece.
  virtual std::span<const std::byte> mapping() const { return {}; }
};

// What a step may use beside the device. Both may be null.
struct ColdSide {
  ColdLink* link = nullptr;
  const NeuronStore* arena = nullptr;
};

}  // namespace isotherm::gpu
