#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace isotherm {

// Reusable meeting point of `num_threads` threads inside a running parallel section. Waiters spin
// for `spin`, then sleep on a futex. What a thread wrote before Wait() is seen by all after it.
// All threads of the section must take part, so it belongs into ThreadPool::Run, never RunElastic.
class Barrier {
 public:
  explicit Barrier(int num_threads, std::chrono::nanoseconds spin = std::chrono::microseconds(20))
      : num_threads_(static_cast<uint32_t>(num_threads)), spin_(spin) {}
  Barrier(const Barrier&) = delete;
  Barrier& operator=(const Barrier&) = delete;

  void Wait();

 private:
  const uint32_t num_threads_;
  const std::chrono::nanoseconds spin_;
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
  std::atomic<uint32_t> sleepers_{0};
};

}  // namespace isotherm
