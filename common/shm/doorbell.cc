#include "common/shm/doorbell.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <climits>

namespace isotherm::shm {
namespace {

// Not FUTEX_PRIVATE: the word is shared between processes.
void FutexWait(std::atomic<uint32_t>& word, uint32_t expected, std::chrono::nanoseconds timeout) {
  timespec time{.tv_sec = timeout.count() / 1'000'000'000,
                .tv_nsec = timeout.count() % 1'000'000'000};
  ::syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT, expected, &time, nullptr, 0);
}

void FutexWake(std::atomic<uint32_t>& word) {
  ::syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE, INT_MAX, nullptr, nullptr,
            0);
}

void CpuRelax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

}  // namespace

Doorbell::Doorbell(ControlRegion& region, const WaitOptions& options)
    : own_(region.own_words()), peer_(region.peer_words()), options_(options) {}

void Doorbell::Ring() {
  // Store then load, both sequentially consistent, against the sleeper's store of `sleeps` and load
  // of `bell` in Await: one of the two sides sees the other's store, so no wake is lost.
  own_.bell.store(++bell_, std::memory_order_seq_cst);
  if (peer_.sleeps.load(std::memory_order_seq_cst) != 0) FutexWake(own_.bell);
}

bool Doorbell::aborted() const {
  return aborted_.load(std::memory_order_acquire) ||
         peer_.abort.load(std::memory_order_acquire) != 0;
}

absl::Status Doorbell::Await(absl::FunctionRef<bool()> done, TimePoint deadline,
                             std::chrono::microseconds spin) {
  // What a peer that we declared dead still writes is never accepted.
  const auto accepted = [&] { return done() && !aborted_.load(std::memory_order_acquire); };
  if (accepted()) return absl::OkStatus();
  const auto spin_end = std::min(deadline, std::chrono::steady_clock::now() + spin);
  while (true) {
    for (int i = 0; i < 16; ++i) {  // a clock read costs as much as some pauses
      CpuRelax();
      if (accepted()) return absl::OkStatus();
    }
    if (aborted()) return absl::UnavailableError("the other worker left");
    if (std::chrono::steady_clock::now() >= spin_end) break;
  }
  while (true) {
    own_.sleeps.store(1, std::memory_order_seq_cst);
    const uint32_t seen = peer_.bell.load(std::memory_order_seq_cst);
    const bool is_done = accepted();
    const bool is_aborted = !is_done && aborted();
    const auto left = deadline - std::chrono::steady_clock::now();
    if (is_done || is_aborted || left <= left.zero()) {
      own_.sleeps.store(0, std::memory_order_relaxed);
      if (is_done) return absl::OkStatus();
      if (is_aborted) return absl::UnavailableError("the other worker left");
      return absl::DeadlineExceededError("the other worker did not answer in time");
    }
    FutexWait(peer_.bell, seen,
              std::min(std::chrono::duration_cast<std::chrono::nanoseconds>(left),
                       std::chrono::nanoseconds(options_.round)));
    own_.sleeps.store(0, std::memory_order_relaxed);
  }
}

void Doorbell::Abort() {
  aborted_.store(true, std::memory_order_release);
  own_.abort.store(1, std::memory_order_release);
  FutexWake(own_.bell);
  WakeSelf();
}

void Doorbell::WakeSelf() { FutexWake(peer_.bell); }

}  // namespace isotherm::shm
