#include "common/threading/barrier.h"

#include "common/threading/futex.h"
#include "common/threading/spin_wait.h"

namespace isotherm {

using threading_internal::FutexWait;
using threading_internal::FutexWakeAll;
using threading_internal::SpinUntil;

void Barrier::Wait() {
  if (num_threads_ <= 1) return;
  const uint32_t generation = generation_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_threads_) {
    arrived_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) FutexWakeAll(generation_);
    return;
  }
  const auto passed = [&] { return generation_.load(std::memory_order_acquire) != generation; };
  if (SpinUntil(spin_, passed)) return;
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  while (generation_.load(std::memory_order_seq_cst) == generation) {
    FutexWait(generation_, generation);
  }
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace isotherm
