#include "common/threading/countdown.h"

#include "common/threading/futex.h"
#include "common/threading/spin_wait.h"

namespace isotherm {

using threading_internal::FutexWait;
using threading_internal::FutexWakeAll;
using threading_internal::SpinUntil;

void Countdown::Take(int64_t parts) {
  if (left_.fetch_sub(parts, std::memory_order_acq_rel) != parts) return;
  finished_.fetch_add(1, std::memory_order_seq_cst);
  if (sleeps_.load(std::memory_order_seq_cst) != 0) FutexWakeAll(finished_);
}

void Countdown::Wait(std::chrono::nanoseconds spin) {
  if (SpinUntil(spin, [&] { return Done(); })) return;
  sleeps_.store(1, std::memory_order_seq_cst);
  while (true) {
    // Read before Done(): a Take that comes in between changes it, and the futex does not sleep.
    const uint32_t seen = finished_.load(std::memory_order_seq_cst);
    if (Done()) break;
    FutexWait(finished_, seen);
  }
  sleeps_.store(0, std::memory_order_relaxed);
}

}  // namespace isotherm
