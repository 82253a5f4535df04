#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <vector>

#include "common/threading/thread_pool.h"

namespace isotherm {

// Bytes a second that `pool` reads linearly from memory: the best of six passes over 256 MB in
// 1 MB pieces, half of them with software prefetch, which some virtual machines need. Measured anew
// at each call, so that a share is taken of what the machine gave seconds before.
inline double LinearReadBytesPerSecond(ThreadPool& pool) {
  constexpr int64_t kWords = int64_t{32} << 20, kPiece = int64_t{128} << 10;
  constexpr int64_t kAheadWords = 1024;
  static const std::vector<uint64_t>* const words = new std::vector<uint64_t>(kWords, 1);
  double best = 0;
  for (int pass = 0; pass < 6; ++pass) {
    std::atomic<int64_t> cursor{0};
    std::atomic<uint64_t> total{0};
    const auto start = std::chrono::steady_clock::now();
    pool.RunElastic([&](int) {
      uint64_t sums[8] = {};
      for (int64_t i; (i = cursor.fetch_add(kPiece)) < kWords;) {
        const uint64_t* const piece = words->data() + i;
        for (int64_t k = 0; k < kPiece; k += 8) {
          if (pass % 2 == 0) __builtin_prefetch(piece + k + kAheadWords, 0, 2);
          for (int j = 0; j < 8; ++j) sums[j] += piece[k + j];
        }
      }
      for (const uint64_t sum : sums) total += sum;
    });
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    // The sums must be made: without this the compiler may leave the reads out.
    asm volatile("" : : "r"(total.load()) : "memory");
    best = std::max(best, kWords * 8 / taken.count());
  }
  return best;
}

}  // namespace isotherm
