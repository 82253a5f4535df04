#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace isotherm::gpu {

// Runs plan phases one after the other on its own thread ("plan"): copying bundles and waiting for
// steps to end must not block an RPC thread.
class PlanExecutor {
 public:
  PlanExecutor();
  ~PlanExecutor();  // finishes the running task, drops the rest
  void Post(std::function<void()> task);

 private:
  void Loop();
  std::mutex mu_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace isotherm::gpu
