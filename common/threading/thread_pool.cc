#include "common/threading/thread_pool.h"

#include <pthread.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/threading/futex.h"
#include "common/threading/spin_wait.h"

namespace isotherm {
namespace {

using threading_internal::FutexWait;
using threading_internal::FutexWakeAll;
using threading_internal::SpinUntil;

constexpr uint32_t kOpen = 1u << 16;
constexpr uint32_t kJoinedMask = kOpen - 1;
constexpr int kGenerationShift = 17;
constexpr int kMaxThreads = 4096;

uint32_t Generation(uint32_t state) { return state >> kGenerationShift; }

int ThreadCount(const ThreadPoolOptions& options) {
  return std::clamp(options.num_threads > 0 ? options.num_threads : DefaultThreadCount(), 1,
                    kMaxThreads);
}

}  // namespace

ThreadPool::ThreadPool(const ThreadPoolOptions& options)
    : num_threads_(ThreadCount(options)),
      spin_ns_(std::chrono::nanoseconds(options.spin).count()),
      cpus_(options.cpus) {
  workers_.reserve(num_threads_ - 1);
  for (int idx = 1; idx < num_threads_; ++idx) {
    const int cpu = cpus_.empty() ? -1 : cpus_[static_cast<size_t>(idx) % cpus_.size()];
    std::string name =
        absl::StrCat(options.name.empty() ? "pool" : options.name, "-", idx).substr(0, 15);
    workers_.emplace_back([this, idx, cpu, name = std::move(name)] {
      pthread_setname_np(pthread_self(), name.c_str());
      if (cpu >= 0) BindThisThread({cpu});  // best effort: the mask may have shrunk since
      WorkerLoop(idx);
    });
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_release);
  state_.store((Generation(state_.load(std::memory_order_relaxed)) + 1) << kGenerationShift,
               std::memory_order_seq_cst);
  FutexWakeAll(state_);
  for (std::thread& worker : workers_) worker.join();
}

bool ThreadPool::BindCaller() const { return cpus_.empty() || BindThisThread({cpus_[0]}); }

void ThreadPool::Run(absl::FunctionRef<void(int thread_idx)> fn) {
  Dispatch(fn, num_threads_, false);
}

void ThreadPool::RunElastic(absl::FunctionRef<void(int thread_idx)> fn, int max_threads) {
  Dispatch(fn, std::min(num_threads_, max_threads), true);
}

void ThreadPool::Dispatch(absl::FunctionRef<void(int)> fn, int max_threads, bool elastic) {
  if (max_threads <= 1) {
    fn(0);
    return;
  }
  fn_ = &fn;
  max_threads_.store(max_threads, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  const uint32_t generation = Generation(state_.load(std::memory_order_relaxed)) + 1;
  state_.store(generation << kGenerationShift | kOpen, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) FutexWakeAll(state_);
  fn(0);
  uint32_t joined = static_cast<uint32_t>(num_threads_ - 1);
  if (elastic) joined = state_.fetch_and(~kOpen, std::memory_order_acq_rel) & kJoinedMask;
  AwaitWorkers(joined);
}

void ThreadPool::AwaitWorkers(uint32_t joined) {
  if (SpinUntil(spin(), [&] { return done_.load(std::memory_order_acquire) == joined; })) return;
  caller_sleeps_.store(1, std::memory_order_seq_cst);
  for (uint32_t done; (done = done_.load(std::memory_order_seq_cst)) != joined;) {
    FutexWait(done_, done);
  }
  caller_sleeps_.store(0, std::memory_order_relaxed);
}

void ThreadPool::WorkerLoop(int thread_idx) {
  uint32_t seen = 0;  // the generation this worker has dealt with
  while (true) {
    const auto is_new = [&] { return Generation(state_.load(std::memory_order_acquire)) != seen; };
    if (!SpinUntil(spin(), is_new)) {
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      for (uint32_t state; Generation(state = state_.load(std::memory_order_seq_cst)) == seen;) {
        FutexWait(state_, state);
      }
      sleepers_.fetch_sub(1, std::memory_order_relaxed);
    }
    const uint32_t state = state_.load(std::memory_order_acquire);
    seen = Generation(state);
    if (stop_.load(std::memory_order_acquire)) return;
    if ((state & kOpen) == 0) continue;
    if (thread_idx >= max_threads_.load(std::memory_order_relaxed)) continue;
    // One addition, not a loop of compare and swap: all workers come at once. Where the section was
    // closed meanwhile the count is not looked at again; where the next one was opened, it is
    // that one which is joined.
    const uint32_t before = state_.fetch_add(1, std::memory_order_acq_rel);
    seen = Generation(before);
    if ((before & kOpen) == 0) continue;
    (*fn_)(thread_idx);
    done_.fetch_add(1, std::memory_order_seq_cst);
    if (caller_sleeps_.load(std::memory_order_seq_cst) != 0) FutexWakeAll(done_);
  }
}

}  // namespace isotherm
