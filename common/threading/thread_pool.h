#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "common/threading/barrier.h"
#include "common/threading/cores.h"

namespace isotherm {

struct ThreadPoolOptions {
  int num_threads = 0;  // the caller included; 0: DefaultThreadCount()
  // Thread i is bound to cpus[i % size]; empty: to none. The caller, index 0, binds itself by
  // BindCaller().
  std::vector<int> cpus;
  // How long an idle worker, or a caller waiting for workers, spins before it sleeps on a futex.
  // Longer than the gap between two kernels of a step, shorter than what a neighbour would miss.
  std::chrono::microseconds spin{20};
  std::string name;  // threads are called "<name>-<idx>", cut to the kernel's 15 characters
};

// A fixed set of threads for short parallel sections. Its owner makes it and passes it on; there is
// no global one. Starting a section allocates nothing. One thread at a time may call Run or
// RunElastic, and not from inside a section.
class ThreadPool {
 public:
  explicit ThreadPool(const ThreadPoolOptions& options);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }
  std::chrono::nanoseconds spin() const {
    return std::chrono::nanoseconds(spin_ns_.load(std::memory_order_relaxed));
  }
  // From the next wait of each thread on. Any thread may call it.
  void SetSpin(std::chrono::nanoseconds spin) {
    spin_ns_.store(spin.count(), std::memory_order_relaxed);
  }

  // Binds the calling thread, for good, to thread 0's CPU. False where that is not allowed.
  bool BindCaller() const;

  // Calls fn(thread_idx) once for every thread_idx in [0, num_threads), fn(0) on the calling
  // thread; returns when all have returned. What they wrote is then visible to the caller.
  void Run(absl::FunctionRef<void(int thread_idx)> fn);

  // Calls fn(0) on the calling thread and fn(i) on each worker that arrives before fn(0) returns;
  // then returns when those have returned. A worker whose core is taken by someone else is not
  // waited for. For work taken from a shared cursor: fn must be complete without any given thread,
  // and must not use a Barrier. Workers from `max_threads` on do not take part.
  void RunElastic(absl::FunctionRef<void(int thread_idx)> fn,
                  int max_threads = std::numeric_limits<int>::max());

 private:
  void WorkerLoop(int thread_idx);
  void Dispatch(absl::FunctionRef<void(int)> fn, int max_threads, bool elastic);
  void AwaitWorkers(uint32_t joined);

  const int num_threads_;
  std::atomic<int64_t> spin_ns_;
  const std::vector<int> cpus_;

  // generation << 17 | open << 16 | number of workers that joined. The caller opens a generation,
  // a worker joins by adding one; it has joined if the section was open then, so a closed section
  // is never entered late.
  alignas(64) std::atomic<uint32_t> state_{0};
  std::atomic<uint32_t> sleepers_{0};
  const absl::FunctionRef<void(int)>* fn_ = nullptr;  // published by state_
  std::atomic<int> max_threads_{0};                   // likewise; a late worker may see a later one
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<uint32_t> done_{0};  // workers that left the section
  std::atomic<uint32_t> caller_sleeps_{0};

  std::vector<std::thread> workers_;  // joined by the destructor
};

}  // namespace isotherm
