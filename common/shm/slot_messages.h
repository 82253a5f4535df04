#pragma once

#include <chrono>
#include <cstdint>

#include "common/shm/doorbell.h"

// What crosses a slot, in the terms of the two engines.
namespace isotherm::shm {

// `layer` of the post that ends a step.
inline constexpr int32_t kEndOfStep = -1;

// Names the work of one layer; a result must carry the same.
struct ColdLayerHeader {
  int64_t step_id = 0;
  int64_t epoch = 0;
  int32_t layer = 0;
  int32_t attempt = 0;
  int32_t num_rows = 0;
  int32_t cut = 0;  // cold ids from the cut on are the gpu side's; num_neurons: none are
  TimePoint deadline;
};

// Where the gpu side writes a post's payload, in shared memory.
struct PostBuffers {
  uint16_t* z = nullptr;        // [num_rows, model_dim], F16 or BF16 as the model rounds z
  uint64_t* active = nullptr;   // [num_rows, ceil(num_neurons / 64)]
  int32_t* row_keys = nullptr;  // [num_rows], row numbers of the step, for the work hash
};

struct ColdLayerResult {
  // [num_rows, model_dim], all finite; the client's memory, valid until its next Wait().
  const float* partial = nullptr;
  uint64_t work_hash = 0;
  int64_t neurons = 0;  // (row, neuron) pairs accumulated
  float compute_us = 0;
  bool was_ready = false;  // it had come before it was waited for
};

// One post as the cpu side sees it, every number checked against the region's shape.
struct ColdLayerWork {
  ColdLayerHeader header;  // layer kEndOfStep: no payload; the deadline is on our own clock
  uint64_t sequence = 0;
  // In shared memory: read each value once, or results differ with what the peer does meanwhile.
  const uint16_t* z = nullptr;
  // The server's own copies, valid until Finish(): no bit at or past num_neurons is set.
  const uint64_t* active = nullptr;
  const int32_t* row_keys = nullptr;
  float* partial = nullptr;  // [num_rows, model_dim], to be written before Finish()
  bool cancelled = false;    // the result is no longer wanted: finish it as kCancelled
};

enum class ColdLayerStatus {
  kDone,
  kStaleEpoch,  // the epoch is not known here
  kPoison,      // the compute side failed; there is no result
  kCancelled,
};

struct ColdLayerOutcome {
  ColdLayerStatus status = ColdLayerStatus::kDone;
  uint64_t work_hash = 0;
  int64_t neurons = 0;
  float compute_us = 0;
};

}  // namespace isotherm::shm
