#pragma once

#include <deque>
#include <functional>
#include <optional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "gateway/scheduling/scheduler.h"

namespace isotherm {

// The one thread that runs a Scheduler: everybody else posts tasks to it. Posting never blocks;
// tasks run in the order posted, and a timer ticks between them. Owned by the server.
class SchedulerThread {
 public:
  using Task = absl::AnyInvocable<void(Scheduler&)>;

  // on_state: called on the thread when state() has changed in anything but counters; must not
  // block. `scheduler` outlives Stop().
  SchedulerThread(Scheduler& scheduler, const Clock& clock,
                  std::function<void(const SchedulerState&)> on_state);
  ~SchedulerThread();

  void Post(Task task);
  // As of the last task.
  SchedulerState state() const;
  // Until no request is left or `deadline` (of the real clock); true if none is.
  bool WaitUntilEmpty(std::chrono::steady_clock::time_point deadline) const;
  // Runs what was posted, then ends. Later tasks are dropped. Idempotent.
  void Stop();

 private:
  void Loop();
  void Publish();

  Scheduler& scheduler_;
  const Clock& clock_;
  const std::function<void(const SchedulerState&)> on_state_;
  mutable absl::Mutex mu_;
  std::deque<Task> tasks_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  SchedulerState state_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;  // last: it uses the members above
};

}  // namespace isotherm
