#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "common/base/unique_fd.h"
#include "common/shm/control_region.h"

namespace isotherm::shm {

struct PeerWatchOptions {
  std::chrono::milliseconds beat{5};      // how often our heartbeat changes
  std::chrono::milliseconds suspect{50};  // the peer's did not change for so long
  std::chrono::milliseconds dead{250};
};

enum class PeerState { kAlive, kSuspect, kDead };

// Tells within a beat that the other side of a region died, and within `dead` that it stopped. Its
// thread, "peer-watch", also moves our own heartbeat. Death is final: a peer that comes back needs
// a new attachment.
class PeerWatch {
 public:
  struct Callbacks {
    // Once, on the watch thread, with Unavailable: abort the SlotClient or SlotServer here, so that
    // nothing the peer writes later is read. Must not destroy the PeerWatch.
    std::function<void(absl::Status)> on_dead;
    // A few times after that: wake whoever waits (WakeSelf). A wake that comes just before a waiter
    // sleeps has no effect, so one is not enough.
    std::function<void()> wake;
  };

  // `liveness` is the handoff's connection: nothing is sent on it, its end is the peer's end.
  PeerWatch(UniqueFd liveness, ControlRegion& region, Callbacks callbacks,
            const PeerWatchOptions& options = {});
  ~PeerWatch();  // joins; closes the socket, which the peer sees as our end
  PeerWatch(const PeerWatch&) = delete;
  PeerWatch& operator=(const PeerWatch&) = delete;

  PeerState state() const { return state_.load(std::memory_order_acquire); }

 private:
  void Loop();
  void Die(const std::string& why);
  bool StopRequested(std::chrono::milliseconds wait);

  const UniqueFd liveness_;
  ControlRegion& region_;
  const Callbacks callbacks_;
  const PeerWatchOptions options_;
  UniqueFd stop_event_;
  std::atomic<PeerState> state_{PeerState::kAlive};
  std::thread thread_;  // declared last: joined before what it reads goes
};

}  // namespace isotherm::shm
