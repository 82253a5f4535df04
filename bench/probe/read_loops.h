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

// Sum of `words` words (a multiple of 8), read with the widest vectors of this CPU.
uint64_t SumWords(const uint64_t* words, int64_t count, Fetch fetch);

// sums[s] = sum of bundle s, `streams` (1, 2 or 4) read side by side. ahead: as many bundles to be
// fetched into L2 meanwhile, or null.
void SumBundles(const uint64_t* const* bundles, const uint64_t* const* ahead, int streams,
                int64_t words, uint64_t* sums);

}  // namespace isotherm::probe
