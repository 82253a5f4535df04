#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <memory>

namespace isotherm {

// Non-negative floats order as their bit patterns do.
inline uint32_t FrequencyKey(float frequency) { return std::bit_cast<uint32_t>(frequency + 0.0f); }
inline uint64_t DensityKey(float frequency, int64_t bytes) {
  return std::bit_cast<uint64_t>(static_cast<double>(frequency) / static_cast<double>(bytes) + 0.0);
}

template <typename Key>
struct FrequencyThreshold {
  bool all_fit = false;  // every item fits; `key` is void
  Key key = 0;           // items above it fit together, those at or above it do not
  int64_t above_bytes = 0;
};

// Radix select with weights: sixteen bits of the key a pass, from the top, so 2 passes over the
// items for 32-bit keys and no copy of them, where a sort would order millions to find one.
// for_each(visit) calls visit(key, bytes) for every item, the same ones each time.
template <typename Key, typename ForEach>
FrequencyThreshold<Key> SelectThreshold(int64_t budget_bytes, const ForEach& for_each) {
  constexpr int kDigitBits = 16;
  constexpr size_t kBuckets = size_t{1} << kDigitBits;
  FrequencyThreshold<Key> out;
  const auto bytes_of = std::make_unique<std::array<int64_t, kBuckets>>();
  for (int shift = static_cast<int>(sizeof(Key)) * 8 - kDigitBits; shift >= 0;
       shift -= kDigitBits) {
    bytes_of->fill(0);
    const bool first = shift + kDigitBits == static_cast<int>(sizeof(Key)) * 8;
    const Key prefix = first ? 0 : out.key >> (shift + kDigitBits);
    for_each([&](Key key, int64_t bytes) {
      if (!first && key >> (shift + kDigitBits) != prefix) return;
      (*bytes_of)[static_cast<size_t>(key >> shift) & (kBuckets - 1)] += bytes;
    });
    size_t digit = kBuckets;
    while (digit > 0 && (*bytes_of)[digit - 1] <= budget_bytes - out.above_bytes) {
      out.above_bytes += (*bytes_of)[--digit];
    }
    if (digit == 0) {  // only in the first pass: later ones look inside a bucket that does not fit
      out.all_fit = true;
      return out;
    }
    out.key |= static_cast<Key>(digit - 1) << shift;
  }
  return out;
}

}  // namespace isotherm
