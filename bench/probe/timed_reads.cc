#include "bench/probe/timed_reads.h"

#include <algorithm>
#include <chrono>

#include "bench/probe/pinned_threads.h"

namespace isotherm::probe {
namespace {

using std::chrono::steady_clock;

struct alignas(64) Tally {
  int64_t bytes = 0;
  double seconds = 0;
  bool right = true;
};

ReadRate RateOf(const std::vector<Tally>& tallies) {
  ReadRate rate;
  for (const Tally& tally : tallies) {
    if (tally.seconds > 0) rate.gb_s += static_cast<double>(tally.bytes) / tally.seconds / 1e9;
    rate.right &= tally.right;
  }
  return rate;
}

// Calls read(tally) until the time is over.
template <typename Read>
void RepeatFor(double seconds, const std::atomic<bool>* stop, Tally& tally, const Read& read) {
  const auto start = steady_clock::now();
  do {
    read(tally);
    tally.seconds = std::chrono::duration<double>(steady_clock::now() - start).count();
  } while (stop != nullptr ? !stop->load(std::memory_order_relaxed) : tally.seconds < seconds);
}

uint64_t Scramble(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace

ReadRate ReadLinearly(const TestMemory& memory, const std::vector<int>& cpus, Fetch fetch,
                      double seconds) {
  constexpr int64_t kPieceBytes = int64_t{1} << 20;
  constexpr int64_t kPieceBlocks = kPieceBytes / kBlockBytes;
  const int64_t pieces = memory.bytes() / kPieceBytes;
  std::vector<uint64_t> expected;
  for (int64_t p = 0; p < pieces; ++p) {
    expected.push_back(BlocksSum(p * kPieceBlocks, kPieceBlocks));
  }
  std::atomic<int64_t> cursor{0};
  std::vector<Tally> tallies(cpus.size());
  RunPinned(cpus, [&](int thread) {
    RepeatFor(seconds, nullptr, tallies[static_cast<size_t>(thread)], [&](Tally& tally) {
      const int64_t piece = cursor.fetch_add(1, std::memory_order_relaxed) % pieces;
      const uint64_t sum =
          SumWords(memory.data() + piece * (kPieceBytes / 8), kPieceBytes / 8, fetch);
      tally.right &= sum == expected[static_cast<size_t>(piece)];
      tally.bytes += kPieceBytes;
    });
  });
  return RateOf(tallies);
}

ReadRate ReadBundles(const TestMemory& memory, const std::vector<int>& cpus,
                     const BundleReadOptions& options, double seconds,
                     const std::atomic<bool>* stop) {
  constexpr int kSets = 8;
  constexpr int64_t kChunk = 8;
  const int64_t words = options.bundle_bytes / 8;
  const int64_t blocks = options.bundle_bytes / kBlockBytes;
  const int64_t bundles = memory.bytes() / options.bundle_bytes;
  std::vector<int64_t> ids;  // the eight sets, one after the other
  for (int set = 0; set < kSets; ++set) {
    for (int64_t b = 0; b < bundles; ++b) {
      if (Scramble(static_cast<uint64_t>(b)) % kSets == static_cast<uint64_t>(set)) {
        ids.push_back(b);
      }
    }
  }
  const int64_t chunks = static_cast<int64_t>(ids.size()) / kChunk;
  std::atomic<int64_t> cursor{0};
  std::vector<Tally> tallies(cpus.size());
  const auto at = [&](int64_t i) { return memory.data() + ids[static_cast<size_t>(i)] * words; };
  RunPinned(cpus, [&](int thread) {
    const auto claim = [&] {
      return cursor.fetch_add(1, std::memory_order_relaxed) % chunks * kChunk;
    };
    int64_t next = claim();
    RepeatFor(seconds, stop, tallies[static_cast<size_t>(thread)], [&](Tally& tally) {
      const int64_t first = next;
      next = claim();
      for (int64_t i = 0; i < kChunk; i += options.streams) {
        const uint64_t* group[4];
        const uint64_t* after[4];
        uint64_t sums[4];
        for (int s = 0; s < options.streams; ++s) {
          group[s] = at(first + i + s);
          after[s] =
              i + options.streams < kChunk ? at(first + i + options.streams + s) : at(next + s);
        }
        SumBundles(group, after, options.streams, options.ahead, words, sums);
        for (int s = 0; s < options.streams; ++s) {
          const int64_t id = ids[static_cast<size_t>(first + i + s)];
          tally.right &= sums[s] == BlocksSum(id * blocks, blocks);
        }
      }
      tally.bytes += kChunk * options.bundle_bytes;
    });
  });
  return RateOf(tallies);
}

}  // namespace isotherm::probe
