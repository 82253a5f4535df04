#pragma once

#include <cstdint>

namespace isotherm::bench {

// What a stream of random numbers is for; part of its key.
enum class RandomPurpose : uint64_t { kRanks, kDrift, kBasis, kMixing, kWeights };

// Names a stream: equal keys give equal numbers, in whichever thread and order they are drawn.
struct RandomKey {
  uint64_t seed = 0;
  RandomPurpose purpose = RandomPurpose::kWeights;
  int64_t layer = 0;
  int64_t tensor = 0;
  int64_t row = 0;
};

// SplitMix64 (Steele, Lea, Flood 2014) on a hash of the key.
class RandomStream {
 public:
  explicit RandomStream(const RandomKey& key) {
    for (const uint64_t word :
         {key.seed, static_cast<uint64_t>(key.purpose), static_cast<uint64_t>(key.layer),
          static_cast<uint64_t>(key.tensor), static_cast<uint64_t>(key.row)}) {
      state_ ^= word;
      state_ = Next();
    }
  }

  uint64_t Next() {
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  // 0 .. bound - 1, for bounds far below 2^32.
  uint64_t Below(uint64_t bound) { return ((Next() >> 32) * bound) >> 32; }

 private:
  uint64_t state_ = 0;
};

}  // namespace isotherm::bench
