#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/shm/arena_layout.h"
#include "common/shm/arena_offer.h"
#include "common/shm/control_region.h"
#include "common/shm/handoff.h"
#include "common/shm/peer_watch.h"
#include "common/shm/shared_memory.h"
#include "common/shm/slot_client.h"

namespace isotherm::shm {

// A gpu_worker's end of one attachment, for tests of the other end: the mapped arena, the slots and
// the watch on the peer. When the cpu_worker dies, client() answers Unavailable from then on,
// arena() stays readable, and a new attachment takes a new offer; keep this one until no thread
// reads its arena.
class GpuAttachment {
 public:
  struct Options {
    ArenaShape shape;  // of our own model
    WaitOptions wait;
    PeerWatchOptions watch;
    std::chrono::milliseconds handoff_timeout{2000};
    // On the watch thread, once, after client() was aborted.
    std::function<void(absl::Status)> on_dead;
  };
  // Takes the descriptors and checks everything before anything is used. FailedPrecondition: the
  // peer's arena or control region is not for our model; else TakeHandoff's errors.
  static absl::StatusOr<std::unique_ptr<GpuAttachment>> Open(const ArenaOffer& offer,
                                                             Options options);
  ~GpuAttachment();  // ends the attachment; the peer sees the connection close

  SlotClient& client() { return *client_; }
  PeerState peer_state() const { return watch_->state(); }
  const std::byte* arena() const { return arena_.data(); }  // geometry().arena_bytes, read-only
  const ArenaGeometry& geometry() const { return geometry_; }
  const Nonce& nonce() const { return control_->nonce(); }

 private:
  GpuAttachment() = default;

  ArenaGeometry geometry_;
  UniqueFd arena_fd_;  // keeps the weights alive when the cpu_worker dies
  Mapping arena_;
  std::unique_ptr<ControlRegion> control_;
  std::unique_ptr<SlotClient> client_;
  std::unique_ptr<PeerWatch> watch_;  // declared last: its thread uses the client
};

}  // namespace isotherm::shm
