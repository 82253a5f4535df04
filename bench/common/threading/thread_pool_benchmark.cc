// build/bench/thread_pool_benchmark
// Cost of an empty section: with workers still spinning (sections back to back) and with workers
// asleep on the futex (spin 0, or a pause longer than the spin before each section).
#include <atomic>
#include <chrono>

#include "benchmark/benchmark.h"
#include "common/threading/futex.h"
#include "common/threading/thread_pool.h"

namespace isotherm {
namespace {

void Idle(std::chrono::microseconds pause) {
  const auto end = std::chrono::steady_clock::now() + pause;
  while (std::chrono::steady_clock::now() < end) threading_internal::CpuRelax();
}

void EmptySection(benchmark::State& state, bool elastic) {
  ThreadPool pool({.num_threads = static_cast<int>(state.range(0)), .name = "bench"});
  const std::chrono::microseconds pause(state.range(1));
  std::atomic<int64_t> calls{0};
  const auto fn = [&](int) { calls.fetch_add(1, std::memory_order_relaxed); };
  int64_t rounds = 0;
  for (auto _ : state) {
    Idle(pause);
    const auto start = std::chrono::steady_clock::now();
    if (elastic) {
      pool.RunElastic(fn);
    } else {
      pool.Run(fn);
    }
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    state.SetIterationTime(taken.count());
    ++rounds;
  }
  if (!elastic && calls != rounds * pool.num_threads())
    state.SkipWithError("a thread was left out");
  state.counters["threads_a_section"] = static_cast<double>(calls) / rounds;
}

void Run(benchmark::State& state) { EmptySection(state, false); }
void RunElastic(benchmark::State& state) { EmptySection(state, true); }

void BarrierWait(benchmark::State& state) {
  const int threads = static_cast<int>(state.range(0));
  ThreadPool pool({.num_threads = threads, .name = "bench"});
  Barrier barrier(threads);
  constexpr int kWaits = 1000;
  for (auto _ : state) {
    pool.Run([&](int) {
      for (int i = 0; i < kWaits; ++i) barrier.Wait();
    });
  }
  state.SetItemsProcessed(state.iterations() * kWaits);
}

// threads, microseconds of idling before the section (the pool spins for 20).
BENCHMARK(Run)->Args({1, 0})->Args({2, 0})->Args({2, 5})->Args({2, 100})->UseManualTime();
BENCHMARK(RunElastic)->Args({2, 0})->Args({2, 5})->Args({2, 100})->UseManualTime();
BENCHMARK(BarrierWait)->Arg(2)->UseRealTime();

}  // namespace
}  // namespace isotherm

BENCHMARK_MAIN();
