#include "bench/probe/pinned_threads.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "common/threading/cores.h"

namespace isotherm::probe {

void RunPinned(const std::vector<int>& cpus, const std::function<void(int)>& fn) {
  const int count = static_cast<int>(cpus.size());
  std::atomic<int> ready{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) {
    threads.emplace_back([&, i] {
      cpu_set_t mask;
      CPU_ZERO(&mask);
      CPU_SET(cpus[static_cast<size_t>(i)], &mask);
      ::sched_setaffinity(0, sizeof(mask), &mask);
      ready.fetch_add(1);
      while (ready.load() < count) std::this_thread::yield();
      fn(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

std::vector<int> FirstCpus(int count) {
  std::vector<int> cpus = AllowedCpus();
  cpus.resize(std::min(cpus.size(), static_cast<size_t>(std::max(count, 1))));
  return cpus;
}

}  // namespace isotherm::probe
