#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "bench/probe/read_loops.h"
#include "bench/probe/test_memory.h"

namespace isotherm::probe {

struct ReadRate {
  double gb_s = 0;    // sum over threads of bytes by own time
  bool right = true;  // all sums were those of the memory's pattern
};

// Threads on the CPUs named read 1 MiB pieces one after the other, from a shared cursor that goes
// round, for `seconds`.
ReadRate ReadLinearly(const TestMemory& memory, const std::vector<int>& cpus, Fetch fetch,
                      double seconds);

struct BundleReadOptions {
  int64_t bundle_bytes = 24 << 10;
  int streams = 1;  // bundles side by side
  Ahead ahead;
};
// Threads take chunks of 8 from lists of random bundles, ascending, one in eight of the memory's, a
// fresh eighth each time; until `seconds` are over or, if not null, until *stop.
ReadRate ReadBundles(const TestMemory& memory, const std::vector<int>& cpus,
                     const BundleReadOptions& options, double seconds,
                     const std::atomic<bool>* stop = nullptr);

}  // namespace isotherm::probe
