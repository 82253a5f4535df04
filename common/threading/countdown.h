#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace isotherm {

// Counts parts of a work down to none. Any thread takes parts off; one waits. Unlike a Barrier it
// does not care who did the parts, so a thread that never comes holds nobody up.
class Countdown {
 public:
  // While no other thread uses it.
  void Reset(int64_t parts) { left_.store(parts, std::memory_order_relaxed); }

  // What the caller wrote before is seen by whoever finds Done().
  void Take(int64_t parts);
  bool Done() const { return left_.load(std::memory_order_acquire) == 0; }

  // Spins for `spin`, then sleeps on a futex.
  void Wait(std::chrono::nanoseconds spin);

 private:
  alignas(64) std::atomic<int64_t> left_{0};
  alignas(64) std::atomic<uint32_t> finished_{0};  // changes when the last part is done
  std::atomic<uint32_t> sleeps_{0};
};

}  // namespace isotherm
