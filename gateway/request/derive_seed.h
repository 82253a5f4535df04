#pragma once

#include <cstdint>

namespace isotherm {

// Seed of a request's choice: choice 0 keeps the request's, so that n = 1 and n > 1 agree on it.
// The others go through SplitMix64's finaliser (Steele et al., OOPSLA 2014).
constexpr int64_t DeriveSeed(int64_t seed, int32_t choice) {
  if (choice == 0) return seed;
  uint64_t x = static_cast<uint64_t>(seed) + 0x9e3779b97f4a7c15u * static_cast<uint64_t>(choice);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return static_cast<int64_t>((x ^ (x >> 31)) >> 1);
}

}  // namespace isotherm
