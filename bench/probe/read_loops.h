#pragma once

#include <cstdint>

namespace isotherm::probe {

enum class Fetch {
  kNone,         // the hardware's own prefetchers
  kL2,           // prefetcht1, a few KiB ahead
  kNonTemporal,  // prefetchnta
};

inline const char* Name(Fetch fetch) {
  return fetch == Fetch::kNone ? "plain" : fetch == Fetch::kL2 ? "prefetch_l2" : "prefetch_nta";
}

// Sum of `count` words (a multiple of 16, 64-byte aligned), read with the widest vectors of this
// CPU.
uint64_t SumWords(const uint64_t* words, int64_t count, Fetch fetch);

// How the bundles that come next are fetched meanwhile.
struct Ahead {
  // Of each 4 KiB page, from its start: 0 none, 64 all, few to start the hardware's own streams.
  int lines_per_page = 0;
  bool non_temporal = false;  // prefetchnta instead of prefetcht1
};

// sums[s] = sum of bundle s, `streams` (1, 2 or 4) read side by side; `next`: as many bundles that
// come next. words: a multiple of a page's 512.
void SumBundles(const uint64_t* const* bundles, const uint64_t* const* next, int streams,
                const Ahead& ahead, int64_t words, uint64_t* sums);

}  // namespace isotherm::probe
