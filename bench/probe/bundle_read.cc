#include <algorithm>

#include "bench/probe/figure.h"
#include "bench/probe/line.h"
#include "bench/probe/pinned_threads.h"
#include "bench/probe/timed_reads.h"

namespace isotherm::probe {
namespace {

void Measure(const TestMemory& memory, int threads, const BundleReadOptions& options) {
  const ReadRate rate = ReadBundles(memory, FirstCpus(threads), options, 0.12);
  Line line("bundle_read");
  line.Set("threads", threads).Set("bundle_bytes", options.bundle_bytes);
  line.Set("streams", options.streams).Set("lines_ahead_per_page", options.ahead.lines_per_page);
  line.Set("non_temporal", options.ahead.non_temporal);
  if (rate.right) {
    line.Set("gb_s", rate.gb_s);
  } else {
    line.Set("error", "wrong sum");
  }
}

}  // namespace

void BundleRead() {
  const TestMemory memory({.kind = TestMemory::Kind::kSealedMemfd, .bytes = int64_t{3} << 30});
  if (memory.data() == nullptr) {
    Line("bundle_read").Set("error", memory.error());
    return;
  }
  const int allowed = static_cast<int>(FirstCpus(1024).size());
  for (const int64_t bundle_bytes : {int64_t{24} << 10, int64_t{32} << 10}) {
    // The whole grid with one core left free.
    for (const int streams : {1, 2, 4}) {
      for (const int lines : {0, 1, 2, 4, 8, 16, 64}) {
        Measure(memory, std::max(1, allowed - 1), {bundle_bytes, streams, {lines, false}});
      }
      Measure(memory, std::max(1, allowed - 1), {bundle_bytes, streams, {64, true}});
    }
    for (const int threads : {1, 12, 13, 14, 16}) {
      if (threads > allowed || threads == allowed - 1) continue;
      for (const int lines : {0, 4, 64}) {
        Measure(memory, threads, {bundle_bytes, 2, {lines, false}});
      }
      Measure(memory, threads, {bundle_bytes, 4, {64, false}});
    }
  }
}

}  // namespace isotherm::probe
