#pragma once

#include <string>
#include <vector>

namespace isotherm {

// Where a CPU sits. CPUs of one core of one package are that core's hardware threads.
struct CpuPlace {
  int cpu = 0;
  int core = 0;
  int package = 0;
};

// From `cpu_root` (/sys/devices/system/cpu). A CPU of which nothing can be read counts as a core of
// its own.
std::vector<CpuPlace> ReadCpuPlaces(const std::vector<int>& cpus,
                                    const std::string& cpu_root = "/sys/devices/system/cpu");

// How the CPUs of a host with a GPU are divided: one for everything that only waits and passes
// messages on, the others for compute threads, bound one to each. Compute threads all spin, and one
// runnable thread more than CPUs would stall them all.
struct CorePlan {
  std::vector<int> compute;  // whole cores first, then the second hardware threads
  std::vector<int> others;
  bool empty() const { return compute.empty(); }
};

// Empty below four CPUs, where a CPU apart would cost more than it brings. The first CPU, to which
// the kernel's own work tends, is the one left free. max_cpus: of a CPU quota, or what the user
// asked for; a plan never has more.
CorePlan PlanCores(std::vector<CpuPlace> places, int max_cpus);

}  // namespace isotherm
