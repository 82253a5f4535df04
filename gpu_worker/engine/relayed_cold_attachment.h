#pragma once

#include <atomic>
#include <memory>
#include <thread>

#include "absl/status/statusor.h"
#include "common/shm/control_region.h"
#include "common/shm/slot_client.h"
#include "common/shm/slot_server.h"
#include "gpu_worker/engine/cold_attachment.h"
#include "gpu_worker/engine/slot_cold_link.h"

namespace isotherm::gpu {

// Slots in front of an attachment that has none, such as a gRPC stream to another host: for a
// device that posts and waits by itself. A thread "cold-relay" serves them and asks the attachment.
class RelayedColdAttachment final : public ColdAttachment {
 public:
  // ResourceExhausted when there is no memory for the slots.
  static absl::StatusOr<std::unique_ptr<RelayedColdAttachment>> Make(
      std::shared_ptr<ColdAttachment> behind, const BundleLayout& layout, int32_t max_rows,
      const shm::WaitOptions& wait = {});
  ~RelayedColdAttachment() override;

  ColdLink& link() override { return link_; }
  const NeuronStore* arena() const override { return behind_->arena(); }

 private:
  RelayedColdAttachment(std::shared_ptr<ColdAttachment> behind, const BundleLayout& layout,
                        std::unique_ptr<shm::ControlRegion> served,
                        std::unique_ptr<shm::ControlRegion> used,
                        std::unique_ptr<shm::SlotServer> server,
                        std::unique_ptr<shm::SlotClient> client);
  void Serve();
  absl::Status Relay(const shm::ColdLayerWork& work, shm::ColdLayerOutcome* outcome);

  const std::shared_ptr<ColdAttachment> behind_;
  const BundleLayout layout_;
  const std::unique_ptr<shm::ControlRegion> served_, used_;  // two sides of one mapping
  const std::unique_ptr<shm::SlotServer> server_;
  const std::unique_ptr<shm::SlotClient> client_;
  SlotColdLink link_;
  std::thread thread_;  // last: joined before what it uses goes
};

}  // namespace isotherm::gpu
