#pragma once

#include <algorithm>
#include <cstdint>

#include "common/base/checked_math.h"

namespace isotherm::gpu {

struct Slice {
  int64_t first = 0, last = 0;  // last is exclusive
  bool empty() const { return first >= last; }
};

// Share of thread t of `count` items, cut at multiples of `tile`.
inline Slice Share(int64_t count, int64_t tile, int t, int num_threads) {
  const int64_t tiles = CeilDiv<int64_t>(count, tile);
  return {std::min(count, tiles * t / num_threads * tile),
          std::min(count, tiles * (t + 1) / num_threads * tile)};
}

}  // namespace isotherm::gpu
