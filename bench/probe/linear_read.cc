#include "bench/probe/figure.h"
#include "bench/probe/line.h"
#include "bench/probe/pinned_threads.h"
#include "bench/probe/timed_reads.h"

namespace isotherm::probe {

void LinearRead() {
  const TestMemory memory({.bytes = int64_t{3} << 30});
  if (memory.data() == nullptr) {
    Line("linear_read").Set("error", memory.error());
    return;
  }
  for (const int threads : {1, 2, 4, 8, 12, 13, 14, 15, 16}) {
    const std::vector<int> cpus = FirstCpus(threads);
    if (static_cast<int>(cpus.size()) < threads) break;
    for (const Fetch fetch : {Fetch::kNone, Fetch::kL2, Fetch::kNonTemporal}) {
      const ReadRate rate = ReadLinearly(memory, cpus, fetch, 0.2);
      Line line("linear_read");
      line.Set("threads", threads).Set("how", Name(fetch));
      if (rate.right) {
        line.Set("gb_s", rate.gb_s);
      } else {
        line.Set("error", "wrong sum");
      }
    }
  }
}

}  // namespace isotherm::probe
