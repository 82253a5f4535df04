#pragma once

#include <cstdint>
#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "cpu_worker/engine/arena.h"
#include "cpu_worker/engine/bundle_source.h"
#include "cpu_worker/engine/worker_events.h"

namespace isotherm::cpu {

// Goes through the arena again and again, slowly, and looks for bits that flipped. Damage is mended
// from the model's file and reported as a step result of DATA_LOSS: what was computed since the
// last round may be wrong.
//
// Thread-safe: one group at a time, by Start()'s thread "scrub" or by whoever calls CheckNext().
class Scrubber {
 public:
  // Called once, with what makes mending impossible; the worker had better start anew.
  using OnBeyondRepair = std::function<void(absl::Status)>;

  // All outlive the scrubber.
  Scrubber(Arena& arena, const BundleSource& source, WorkerEvents& events,
           OnBeyondRepair on_beyond_repair);
  ~Scrubber();

  // From now on checks `bytes_per_second`. Once.
  void Start(int64_t bytes_per_second);

  // Checks the next group, after the last one the first. DataLoss when it was damaged, and is
  // mended now; other errors when it could not be mended.
  absl::Status CheckNext();

 private:
  void Loop(absl::Duration pause);

  Arena& arena_;
  const BundleSource& source_;
  WorkerEvents& events_;
  const OnBeyondRepair on_beyond_repair_;
  absl::Mutex mu_;
  int64_t next_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Mutex stop_mu_;
  bool stop_ ABSL_GUARDED_BY(stop_mu_) = false;
  std::thread thread_;  // declared last: joined before what it uses goes
};

}  // namespace isotherm::cpu
