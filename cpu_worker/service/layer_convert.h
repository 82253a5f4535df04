#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "common/shm/arena_layout.h"
#include "common/shm/slot_messages.h"
#include "cpu_worker/engine/cold_engine.h"
#include "isotherm/v1/cpu_worker.pb.h"

namespace isotherm::cpu {

// A ComputeLayerRequest with its arrays in aligned memory of our own.
struct LayerMessage {
  shm::ColdLayerHeader header;  // layer kEndOfStep: no arrays
  uint64_t nonce = 0;
  std::vector<uint16_t> z;
  std::vector<uint64_t> active;
  std::vector<int32_t> row_keys;
  std::vector<float> partial;  // for the answer

  ColdLayerTask Task();
};

// InvalidArgument names the field that does not fit the model or max_rows. `message` is reused.
absl::Status FromProto(const v1::ComputeLayerRequest& request, const shm::ArenaShape& shape,
                       int32_t max_rows, LayerMessage* message);

void ToProto(const LayerMessage& message, const shm::ColdLayerOutcome& outcome,
             int64_t bundle_bytes, v1::ComputeLayerResponse* response);

}  // namespace isotherm::cpu
