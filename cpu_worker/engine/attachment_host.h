#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/shm/arena_offer.h"
#include "common/shm/control_region.h"
#include "common/shm/handoff.h"
#include "common/shm/peer_watch.h"
#include "common/shm/slot_server.h"
#include "cpu_worker/engine/arena.h"
#include "cpu_worker/engine/cold_engine.h"
#include "cpu_worker/engine/worker_events.h"

namespace isotherm::cpu {

// Gives the arena and fresh control slots to one gpu_worker at a time and serves its slots on the
// thread "cold-compute". When that gpu_worker dies or leaves, its slots go and the arena stays.
// Thread-safe.
class AttachmentHost {
 public:
  struct Options {
    std::string socket_dir;
    shm::WaitOptions wait;
    shm::PeerWatchOptions watch;
  };
  // arena, engine and events outlive the host. Errors of HandoffServer::Start.
  static absl::StatusOr<std::unique_ptr<AttachmentHost>> Start(const Arena& arena,
                                                               ColdEngine& engine,
                                                               WorkerEvents& events,
                                                               const Options& options);
  ~AttachmentHost();

  // An offer for `peer`, good for one taker; it replaces one that was not taken. Unavailable while
  // another live gpu_worker is attached; the same one asking again ends what it had.
  // FailedPrecondition for another layout; InvalidArgument unless 1 <= max_rows <= the engine's.
  // device_rings: its posts come from a device that cannot wake a sleeper, so this side stays awake
  // between them (WaitOptions::device_spin).
  absl::StatusOr<shm::ArenaOffer> Open(const std::string& peer, uint64_t layout_hash,
                                       int32_t max_rows, bool device_rings = false);
  // Ends the attachment of that nonce, or withdraws its offer; NotFound for another.
  absl::Status Close(const shm::Nonce& nonce);

  bool attached() const { return attached_.load(std::memory_order_acquire); }

 private:
  struct Session;
  AttachmentHost(const Arena& arena, ColdEngine& engine, WorkerEvents& events,
                 const Options& options);
  void OnTaken(std::unique_ptr<Session> session, UniqueFd connection);
  void Loop();
  void Serve(Session& session);

  const Arena& arena_;
  ColdEngine& engine_;
  WorkerEvents& events_;
  const Options options_;
  std::atomic<bool> attached_{false};
  absl::Mutex mu_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  shm::Nonce offered_ ABSL_GUARDED_BY(mu_);
  Session* current_ ABSL_GUARDED_BY(mu_) = nullptr;  // owned by Loop
  std::unique_ptr<Session> next_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<shm::HandoffServer> handoff_;
  std::thread thread_;  // declared last: joined before what it uses goes
};

}  // namespace isotherm::cpu
