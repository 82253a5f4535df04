#pragma once

#include <deque>
#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace isotherm::cpu {

// Runs tasks of the ComputeLayer streams one after another on its thread, "cold-rpc": gRPC's own
// threads must not compute. Each stream has at most one task here, so streams bound its length.
class ComputeQueue {
 public:
  ComputeQueue();
  ~ComputeQueue();  // runs what was added, then joins

  void Add(std::function<void()> task);

 private:
  void Loop();

  absl::Mutex mu_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;  // declared last: joined before what it reads goes
};

}  // namespace isotherm::cpu
