#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "common/shm/control_region.h"

namespace isotherm::shm {

using TimePoint = std::chrono::steady_clock::time_point;

struct WaitOptions {
  // Before the first sleep. An empty answer from another core takes 1.6 us, one from a peer that
  // has to be woken 16 to 34 us (two cores, a virtual machine), so 20 catches what comes at once.
  // Longer only hurts: a peer that waits for this very core answers later by all of it (6 us
  // without spinning, 48 with 20, 110 with 50, on cores shared with builds).
  // slot_handoff_benchmark.cc.
  std::chrono::microseconds spin{20};
  // The cpu side's instead, where it is a device that rings: one that cannot make the call that
  // wakes a sleeper. Longer than what such a device does between two layers or steps.
  std::chrono::microseconds device_spin{5000};
  // Longest sleep before everything is looked at again: a wake that gets lost costs this much.
  std::chrono::milliseconds round{20};
};

// How one side of a region waits for the other and wakes it. A futex call is made only when the
// other side says that it sleeps. One thread rings and awaits; any thread calls Abort.
class Doorbell {
 public:
  Doorbell(ControlRegion& region, const WaitOptions& options);

  // Tells the peer that something changed. Call after the release-stores that it is to see.
  void Ring();

  // Waits until done() returns true. done() runs on this thread, often, and loads with acquire.
  // DeadlineExceeded, or Unavailable once either side aborted the attachment.
  // spin: instead of the options'.
  absl::Status Await(absl::FunctionRef<bool()> done, TimePoint deadline,
                     std::chrono::microseconds spin);
  absl::Status Await(absl::FunctionRef<bool()> done, TimePoint deadline) {
    return Await(done, deadline, options_.spin);
  }

  // Ends this and all further waits of both sides. Idempotent.
  void Abort();
  bool aborted() const;
  // Wakes this side's waiter, should it sleep; for a watcher that repeats it after Abort().
  void WakeSelf();

 private:
  SideWords& own_;
  SideWords& peer_;
  const WaitOptions options_;
  uint32_t bell_ = 0;                 // own_.bell; a peer cannot change it here
  std::atomic<bool> aborted_{false};  // likewise for own_.abort
};

}  // namespace isotherm::shm
