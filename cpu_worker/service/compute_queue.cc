#include "cpu_worker/service/compute_queue.h"

#include <pthread.h>

#include <utility>

namespace isotherm::cpu {

ComputeQueue::ComputeQueue() {
  thread_ = std::thread([this] {
    ::pthread_setname_np(::pthread_self(), "cold-rpc");
    Loop();
  });
}

ComputeQueue::~ComputeQueue() {
  {
    absl::MutexLock lock(&mu_);
    stop_ = true;
  }
  thread_.join();
}

void ComputeQueue::Add(std::function<void()> task) {
  absl::MutexLock lock(&mu_);
  tasks_.push_back(std::move(task));
}

void ComputeQueue::Loop() {
  while (true) {
    std::function<void()> task;
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(
          +[](ComputeQueue* queue) ABSL_EXCLUSIVE_LOCKS_REQUIRED(queue->mu_) {
            return queue->stop_ || !queue->tasks_.empty();
          },
          this));
      if (tasks_.empty()) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task();
  }
}

}  // namespace isotherm::cpu
