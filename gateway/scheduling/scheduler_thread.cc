#include "gateway/scheduling/scheduler_thread.h"

#include <pthread.h>

#include <utility>

#include "absl/time/time.h"

namespace isotherm {

SchedulerThread::SchedulerThread(Scheduler& scheduler, const Clock& clock,
                                 std::function<void(const SchedulerState&)> on_state)
    : scheduler_(scheduler), clock_(clock), on_state_(std::move(on_state)) {
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "scheduler");
    Loop();
  });
}

SchedulerThread::~SchedulerThread() { Stop(); }

void SchedulerThread::Post(Task task) {
  absl::MutexLock lock(&mu_);
  if (!stopping_) tasks_.push_back(std::move(task));
}

SchedulerState SchedulerThread::state() const {
  absl::MutexLock lock(&mu_);
  return state_;
}

bool SchedulerThread::WaitUntilEmpty(std::chrono::steady_clock::time_point deadline) const {
  absl::MutexLock lock(&mu_);
  const auto empty = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return tasks_.empty() && state_.num_running + state_.num_waiting == 0;
  };
  return mu_.AwaitWithTimeout(absl::Condition(&empty),
                              absl::FromChrono(deadline - std::chrono::steady_clock::now()));
}

void SchedulerThread::Stop() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void SchedulerThread::Publish() {
  const SchedulerState now = scheduler_.state();
  bool changed = false;
  {
    absl::MutexLock lock(&mu_);
    changed = now.gpu_attached != state_.gpu_attached || now.cpu_attached != state_.cpu_attached ||
              now.draining != state_.draining || now.context_length != state_.context_length;
    state_ = now;
  }
  if (changed) on_state_(now);
}

void SchedulerThread::Loop() {
  while (true) {
    const std::optional<Clock::TimePoint> wakeup = scheduler_.NextWakeup();
    std::deque<Task> tasks;
    bool stopping = false;
    {
      absl::MutexLock lock(&mu_);
      const auto has_work = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
        return !tasks_.empty() || stopping_;
      };
      mu_.AwaitWithTimeout(
          absl::Condition(&has_work),
          wakeup.has_value() ? absl::FromChrono(*wakeup - clock_.Now()) : absl::InfiniteDuration());
      tasks = std::exchange(tasks_, {});
      stopping = stopping_;
    }
    for (Task& task : tasks) task(scheduler_);
    if (wakeup.has_value() && *wakeup <= clock_.Now()) scheduler_.Tick();
    Publish();
    if (stopping && tasks.empty()) return;
  }
}

}  // namespace isotherm
