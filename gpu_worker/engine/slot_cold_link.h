#pragma once

#include "common/shm/slot_client.h"
#include "gpu_worker/engine/cold_side.h"
#include "models/bundle_layout.h"

namespace isotherm::gpu {

// A cold side behind layer slots, whoever serves them. The client outlives the link; the one who
// made it aborts it.
class SlotColdLink : public ColdLink {
 public:
  SlotColdLink(shm::SlotClient& client, const BundleLayout& layout)
      : client_(client), layout_(layout) {}

  bool alive() const override { return !client_.aborted(); }
  uint64_t hash_nonce() const override { return client_.hash_nonce(); }
  absl::Status Post(const ColdLayer& layer) override;
  absl::StatusOr<ColdResult> Wait(TimePoint deadline) override;
  absl::Status EndOfStep(int64_t step_id, int64_t epoch, int32_t attempt,
                         TimePoint deadline) override;
  shm::SlotClient* slots() override { return &client_; }

 private:
  absl::Status Checked(absl::Status status);

  shm::SlotClient& client_;
  const BundleLayout layout_;
};

}  // namespace isotherm::gpu
