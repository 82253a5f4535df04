#include "bench/probe/figure.h"
#include "bench/probe/line.h"
#include "bench/probe/pinned_threads.h"
#include "bench/probe/timed_reads.h"

namespace isotherm::probe {

void BundleRead() {
  const TestMemory memory({.kind = TestMemory::Kind::kSealedMemfd, .bytes = int64_t{3} << 30});
  if (memory.data() == nullptr) {
    Line("bundle_read").Set("error", memory.error());
    return;
  }
  constexpr BundleReadOptions kWays[] = {{.streams = 1, .ahead = false},
                                         {.streams = 1, .ahead = true},
                                         {.streams = 2, .ahead = true},
                                         {.streams = 4, .ahead = false},
                                         {.streams = 4, .ahead = true}};
  for (const int threads : {1, 12, 13, 14, 15, 16}) {
    const std::vector<int> cpus = FirstCpus(threads);
    if (static_cast<int>(cpus.size()) < threads) break;
    for (const int64_t bundle_bytes : {int64_t{24} << 10, int64_t{32} << 10}) {
      for (BundleReadOptions options : kWays) {
        options.bundle_bytes = bundle_bytes;
        const ReadRate rate = ReadBundles(memory, cpus, options, 0.15);
        Line line("bundle_read");
        line.Set("threads", threads).Set("bundle_bytes", bundle_bytes);
        line.Set("streams", options.streams).Set("prefetch_next", options.ahead);
        if (rate.right) {
          line.Set("gb_s", rate.gb_s);
        } else {
          line.Set("error", "wrong sum");
        }
      }
    }
  }
}

}  // namespace isotherm::probe
