#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "common/shm/arena_layout.h"
#include "common/shm/control_region.h"
#include "common/shm/handoff.h"
#include "common/shm/peer_watch.h"
#include "common/shm/slot_client.h"
#include "gpu_worker/engine/cold_attachment.h"
#include "gpu_worker/engine/slot_cold_link.h"
#include "models/bundle_layout.h"
#include "models/model_file.h"

namespace isotherm::gpu {

// What the cpu_worker said of the memory it hands over.
struct ShmHandshake {
  shm::Nonce nonce;
  int64_t arena_bytes = 0;
  int64_t control_bytes = 0;
  bool arena_is_model_file = false;
};

// The co-located cpu_worker: layer slots in shared memory and the mapped arena. Every size is
// checked against our own model before anything is mapped.
class ShmColdAttachment final : public ColdAttachment, private NeuronStore {
 public:
  // FailedPrecondition when seals, sizes or headers are not as expected, or the arena is a model
  // file and not the very file that `model` was opened from, unchanged.
  static absl::StatusOr<std::unique_ptr<ShmColdAttachment>> Attach(shm::Handoff handoff,
                                                                   const ShmHandshake& handshake,
                                                                   const ModelFile& model);
  ~ShmColdAttachment() override;

  ColdLink& link() override { return link_; }
  const NeuronStore* arena() const override { return this; }

 private:
  ShmColdAttachment(const BundleLayout& layout, const shm::ArenaGeometry& geometry,
                    shm::Mapping arena, std::unique_ptr<shm::ControlRegion> region,
                    std::unique_ptr<shm::SlotClient> client, UniqueFd connection);

  BundleView Layer(int64_t layer) const override;
  std::span<const std::byte> mapping() const override {
    return {arena_.data(), static_cast<size_t>(geometry_.arena_bytes)};
  }

  const BundleLayout layout_;
  const shm::ArenaGeometry geometry_;
  const shm::Mapping arena_;
  const std::unique_ptr<shm::ControlRegion> region_;
  const std::unique_ptr<shm::SlotClient> client_;
  SlotColdLink link_;
  std::unique_ptr<shm::PeerWatch> watch_;  // last: joined before the client goes
};

// The shape that both sides derive from the model.
shm::ArenaShape ArenaShapeOf(const BundleLayout& layout);

}  // namespace isotherm::gpu
