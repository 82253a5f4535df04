#include "gpu_worker/engine/slot_cold_link.h"

#include <cstring>

namespace isotherm::gpu {

// A peer that broke the protocol is not asked again.
absl::Status SlotColdLink::Checked(absl::Status status) {
  if (status.code() == absl::StatusCode::kUnavailable ||
      status.code() == absl::StatusCode::kInternal) {
    client_.Abort();
  }
  return status;
}

absl::Status SlotColdLink::Post(const ColdLayer& layer) {
  const absl::StatusOr<shm::PostBuffers> buffers =
      client_.BeginPost(layer.num_rows, layer.deadline);
  if (!buffers.ok()) return Checked(buffers.status());
  const auto rows = static_cast<size_t>(layer.num_rows);
  std::memcpy(buffers->z, layer.z,
              rows * static_cast<size_t>(layout_.model_dim) * sizeof(uint16_t));
  std::memcpy(buffers->active, layer.active,
              rows * static_cast<size_t>((layout_.num_neurons + 63) / 64) * sizeof(uint64_t));
  std::memcpy(buffers->row_keys, layer.row_keys, rows * sizeof(int32_t));
  return Checked(client_.Commit({.step_id = layer.step_id,
                                 .epoch = layer.epoch,
                                 .layer = layer.layer,
                                 .attempt = layer.attempt,
                                 .num_rows = layer.num_rows,
                                 .cut = layer.cut,
                                 .deadline = layer.deadline}));
}

absl::StatusOr<ColdResult> SlotColdLink::Wait(TimePoint deadline) {
  const absl::StatusOr<shm::ColdLayerResult> result = client_.Wait(deadline);
  if (!result.ok()) return Checked(result.status());
  return ColdResult{.partial = result->partial,
                    .work_hash = result->work_hash,
                    .neurons = result->neurons,
                    .compute_us = result->compute_us,
                    .was_ready = result->was_ready};
}

absl::Status SlotColdLink::EndOfStep(int64_t step_id, int64_t epoch, int32_t attempt,
                                     TimePoint deadline) {
  return Checked(client_.PostEndOfStep(step_id, epoch, attempt, deadline));
}

}  // namespace isotherm::gpu
