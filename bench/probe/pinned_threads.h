#pragma once

#include <functional>
#include <vector>

namespace isotherm::probe {

// Runs fn(i) on a fresh thread pinned to cpus[i], all starting together; returns when all are done.
void RunPinned(const std::vector<int>& cpus, const std::function<void(int)>& fn);

// The first `count` CPUs that this process may use, or fewer.
std::vector<int> FirstCpus(int count);

}  // namespace isotherm::probe
