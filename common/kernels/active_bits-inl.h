// The ids that a call computes, found by position without listing them all: one word of bits and
// one running count for every 64 neurons. A thread makes this once, in a fraction of a microsecond
// for 11,008 neurons, where a list of a thousand ids would take several.
#if defined(ISOTHERM_COMMON_KERNELS_ACTIVE_BITS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOTHERM_COMMON_KERNELS_ACTIVE_BITS_INL_H_
#undef ISOTHERM_COMMON_KERNELS_ACTIVE_BITS_INL_H_
#else
#define ISOTHERM_COMMON_KERNELS_ACTIVE_BITS_INL_H_
#endif

#include <bit>

#include "common/kernels/sparse_ffn.h"
#include "common/kernels/sparse_ffn_workspace.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels_internal {
namespace HWY_NAMESPACE {

// Clears the bits of neurons that have no slot.
HWY_INLINE uint64_t WithSlot(uint64_t bits, int64_t base, const int32_t* slot_of) {
  uint64_t kept = bits;
  for (; bits != 0; bits &= bits - 1) {
    if (slot_of[base + std::countr_zero(bits)] < 0) kept &= ~(bits & -bits);
  }
  return kept;
}

// Fills `out` from the OR of the rows' bitmaps and returns how many ids there are.
HWY_INLINE int64_t FindActive(const SparseFfnParams& p, ActiveBits& out) {
  const int64_t words = (p.bundles.num_neurons + 63) / 64;
  out.first_word = p.first_neuron / 64;
  out.last_word = (p.last_neuron + 63) / 64;
  int64_t count = 0;
  for (int64_t word = out.first_word; word < out.last_word; ++word) {
    uint64_t bits = 0;
    for (int64_t row = 0; row < p.num_rows; ++row) bits |= p.active[row * words + word];
    if (p.owned != nullptr) bits &= p.owned[word];
    const int64_t base = word * 64;
    if (base < p.first_neuron) bits &= ~uint64_t{0} << (p.first_neuron - base);
    if (base + 64 > p.last_neuron) bits &= ~uint64_t{0} >> (base + 64 - p.last_neuron);
    if (p.bundles.slot_of != nullptr) bits = WithSlot(bits, base, p.bundles.slot_of);
    out.bits[static_cast<size_t>(word)] = bits;
    out.before[static_cast<size_t>(word)] = static_cast<int32_t>(count);
    count += std::popcount(bits);
  }
  out.count = count;
  return count;
}

// ids[i] = the id at position first + i, ascending, for num positions that exist.
HWY_INLINE void IdsAt(const ActiveBits& active, int64_t first, int num, int32_t* ids) {
  // The last word that begins at or before `first`.
  int64_t low = active.first_word, high = active.last_word - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (active.before[static_cast<size_t>(middle)] <= first) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  uint64_t bits = active.bits[static_cast<size_t>(low)];
  for (int64_t skip = first - active.before[static_cast<size_t>(low)]; skip > 0; --skip) {
    bits &= bits - 1;
  }
  for (int i = 0; i < num; ++i) {
    while (bits == 0) bits = active.bits[static_cast<size_t>(++low)];
    ids[i] = static_cast<int32_t>(low * 64 + std::countr_zero(bits));
    bits &= bits - 1;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels_internal
HWY_AFTER_NAMESPACE();

#endif  // include guard, once per target
