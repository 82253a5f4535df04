#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "common/tensor/dtype.h"

namespace isotherm {

// `count` blocks of a quantised type, bytes at random but for scales and minimums, which are below
// 2 (so that they are finite).
inline std::vector<std::byte> RandomBlocks(DType dtype, int64_t count, uint32_t seed) {
  std::mt19937 rng(seed);
  const int64_t bytes = Info(dtype).block_bytes;
  std::vector<std::byte> row(static_cast<size_t>(count * bytes));
  for (std::byte& b : row) b = static_cast<std::byte>(rng());
  for (int64_t i = 0; i < count; ++i) {
    std::byte* const block = row.data() + i * bytes;
    // The high bytes of the two halves that may lie there.
    for (std::byte* scale : {dtype == DType::kQ6_K ? block + 209 : block + 1, block + 3}) {
      *scale &= std::byte{0xbf};
    }
  }
  return row;
}

}  // namespace isotherm
