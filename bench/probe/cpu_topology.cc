#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "bench/probe/figure.h"
#include "bench/probe/line.h"
#include "bench/probe/pinned_threads.h"
#include "common/threading/cores.h"

namespace isotherm::probe {
namespace {

std::string Text(const std::string& path) {
  std::ifstream file(path);
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

void PrintCpuModel() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string model, flags;
  for (std::string line; std::getline(cpuinfo, line);) {
    if (line.rfind("model name", 0) == 0 && model.empty()) model = line.substr(line.find(':') + 2);
    if (line.rfind("flags", 0) == 0 && flags.empty()) flags = line.substr(line.find(':') + 1);
  }
  std::vector<std::string> known;
  std::istringstream words(flags);
  for (std::string word; words >> word;) {
    for (const char* prefix : {"avx2", "avx512", "amx", "f16c", "avx_vnni", "hypervisor"}) {
      if (word.rfind(prefix, 0) == 0) known.push_back(word);
    }
  }
  Line("cpu_topology")
      .Set("model", model)
      .Set("flags", known)
      .Set("allowed_cpus", AllowedCpus())
      .Set("allowed_cores", AllowedCores())
      .Set("kernel", Text("/proc/sys/kernel/osrelease"))
      .Set("numa_nodes", Text("/sys/devices/system/node/online"))
      .Set("cgroup", Text("/proc/self/cgroup"))
      .Set("cpu_max", Text("/sys/fs/cgroup/cpu.max"));
}

void PrintCpu(int cpu) {
  const std::string folder = "/sys/devices/system/cpu/cpu" + std::to_string(cpu);
  Line line("cpu_topology");
  line.Set("cpu", cpu)
      .Set("core_id", Text(folder + "/topology/core_id"))
      .Set("package", Text(folder + "/topology/physical_package_id"))
      .Set("thread_siblings", Text(folder + "/topology/thread_siblings_list"));
  for (int index = 0; index < 5; ++index) {
    const std::string cache = folder + "/cache/index" + std::to_string(index);
    const std::string level = Text(cache + "/level");
    if (level.empty() || Text(cache + "/type") == "Instruction") continue;
    line.Set("l" + level, Text(cache + "/size") + " shared by " + Text(cache + "/shared_cpu_list"));
  }
}

using Floats [[gnu::vector_size(16)]] = float;

// Rounds of ten independent multiply and add chains a second: fills the floating-point ports, so
// that a sibling doing the same halves it. 0 when the arithmetic went wrong.
double ArithmeticRate(double seconds) {
  constexpr int kChains = 10, kRounds = 4096;
  const auto start = std::chrono::steady_clock::now();
  double taken = 0;
  int64_t rounds = 0;
  bool right = true;
  Floats one = {1, 1, 1, 1};
  do {
    Floats sums[kChains] = {};
    asm volatile("" : "+x"(one));
    for (int i = 0; i < kRounds; ++i) {
      for (int c = 0; c < kChains; ++c) sums[c] = sums[c] * one + one;
    }
    for (int c = 0; c < kChains; ++c) right &= sums[c][0] == kRounds && sums[c][3] == kRounds;
    rounds += kRounds;
    taken = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  } while (taken < seconds);
  return right ? static_cast<double>(rounds) / taken : 0;
}

// What of their single rates two CPUs keep when both compute: near 1 on cores of their own, near
// one half as siblings. The best of two tries: neighbours of the machine disturb.
double KeptTogether(int a, int b, const std::vector<double>& alone, const std::vector<int>& cpus) {
  double best = 0;
  for (int attempt = 0; attempt < 2; ++attempt) {
    double rates[2] = {};
    RunPinned({cpus[static_cast<size_t>(a)], cpus[static_cast<size_t>(b)]},
              [&](int i) { rates[i] = ArithmeticRate(0.006); });
    best = std::max(best, std::min(rates[0] / alone[static_cast<size_t>(a)],
                                   rates[1] / alone[static_cast<size_t>(b)]));
  }
  return best;
}

void PrintInterference(const std::vector<int>& cpus) {
  const int count = static_cast<int>(cpus.size());
  std::vector<double> alone(cpus.size());
  for (int i = 0; i < count; ++i) {
    for (int attempt = 0; attempt < 3; ++attempt) {
      RunPinned({cpus[static_cast<size_t>(i)]}, [&](int) {
        double& rate = alone[static_cast<size_t>(i)];
        rate = std::max(rate, ArithmeticRate(0.006));
      });
    }
    if (alone[static_cast<size_t>(i)] <= 0) {
      Line("cpu_topology").Set("error", "wrong arithmetic");
      return;
    }
  }
  std::vector<std::string> siblings;
  double least = 1;
  for (int a = 0; a < count; ++a) {
    for (int b = a + 1; b < count; ++b) {
      const double kept = KeptTogether(a, b, alone, cpus);
      least = std::min(least, kept);
      if (kept < 0.75) {
        siblings.push_back(std::to_string(cpus[static_cast<size_t>(a)]) + "+" +
                           std::to_string(cpus[static_cast<size_t>(b)]));
      }
    }
  }
  // All at once: tells siblings of other guests and clock limits.
  std::vector<double> together(cpus.size());
  RunPinned(cpus, [&](int i) { together[static_cast<size_t>(i)] = ArithmeticRate(0.05); });
  double kept_by_all = 0;
  for (size_t i = 0; i < cpus.size(); ++i) kept_by_all += together[i] / alone[i];
  Line("cpu_topology")
      .Set("pairs_that_slow_each_other", siblings)
      .Set("least_kept_by_a_pair", least)
      .Set("kept_when_all_compute", kept_by_all / static_cast<double>(cpus.size()));
}

}  // namespace

void CpuTopology() {
  PrintCpuModel();
  std::vector<int> cpus = AllowedCpus();
  for (const int cpu : cpus) PrintCpu(cpu);
  cpus.resize(std::min<size_t>(cpus.size(), 16));  // pairs grow with the square
  PrintInterference(cpus);
}

}  // namespace isotherm::probe
