#include "gpu_worker/service/plan_executor.h"

#include <pthread.h>

#include <utility>

namespace isotherm::gpu {

PlanExecutor::PlanExecutor() {
  thread_ = std::thread([this] {
    ::pthread_setname_np(::pthread_self(), "plan");
    Loop();
  });
}

PlanExecutor::~PlanExecutor() {
  {
    std::lock_guard lock(mu_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void PlanExecutor::Post(std::function<void()> task) {
  {
    std::lock_guard lock(mu_);
    tasks_.push_back(std::move(task));
  }
  changed_.notify_all();
}

void PlanExecutor::Loop() {
  std::unique_lock lock(mu_);
  while (true) {
    changed_.wait(lock, [this] { return stop_ || !tasks_.empty(); });
    if (stop_) return;
    const std::function<void()> task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task();
    lock.lock();
  }
}

}  // namespace isotherm::gpu
