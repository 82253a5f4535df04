#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/base/clock.h"
#include "common/step/step.h"

namespace isotherm::cpu {

// Sums up what was computed for the step under way, and knows which epochs steps still name. The
// gpu side drives it: layers of one step, then its end. Thread-safe.
class StepLedger {
 public:
  explicit StepLedger(const Clock& clock = Clock::Real()) : clock_(clock) {}

  // The gateway announced steps step_id .. step_id + grant.
  void Announce(const StepRequest& request);
  // The gateway withdrew what it announced, or its stream ended.
  void AbortAnnounced();

  struct Key {
    int64_t step_id = 0;
    int64_t epoch = 0;
    int32_t attempt = 0;
    bool operator==(const Key&) const = default;
  };
  // One layer's share. Another key than the last one starts anew: a step without an end was given
  // up by the gpu side.
  void AddLayer(const Key& key, uint64_t work_hash, int64_t neurons);
  // The step's total, zero when no layer needed this worker.
  StepResult EndStep(const Key& key);
  // The attachment ended: the step under way is void.
  void DropRunning();

  // True while a step runs under the epoch, or one announced under it may still come. Either counts
  // for kIdle after its last sign of life only: a grant may end early, a step may be given up, and
  // nobody tells us. A step that comes later finds the epoch gone and is run again under another.
  bool Uses(int64_t epoch) const;
  // A step has begun here and gave a sign of life within kIdle.
  bool InStep() const;
  // How many have ended, whether they needed this worker or not.
  int64_t steps_ended() const;
  static constexpr std::chrono::seconds kIdle{2};

 private:
  struct Running {
    Key key;
    uint64_t work_hash = 0;
    int64_t neurons = 0;
    Clock::TimePoint seen;
  };
  struct Announced {
    int64_t epoch = 0;
    int64_t last_step = 0;
    Clock::TimePoint seen;
  };

  const Clock& clock_;
  mutable absl::Mutex mu_;
  std::optional<Running> running_ ABSL_GUARDED_BY(mu_);
  std::optional<Announced> announced_ ABSL_GUARDED_BY(mu_);
  int64_t steps_ended_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace isotherm::cpu
