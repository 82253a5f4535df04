#pragma once

#include <bit>
#include <cstdint>

// A fingerprint of which (row, neuron) pairs were accumulated: the sum over them of
// StepKey(row) * NeuronMix(neuron) modulo 2^64. The workers' sums add up to OwedHash() of the whole
// active set exactly when every pair was done once; a sum, because xor would hide a pair done
// twice.
namespace isotherm {

// Bijective and strong: each input bit flips each output bit with probability near 1/2.
inline uint64_t Mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// What is the same for a layer's neurons; keep it out of the loop over them.
inline uint64_t LayerSeed(uint64_t epoch, uint64_t layer) {
  return Mix64(Mix64(epoch + 0x9e3779b97f4a7c15u) ^ (layer + 0xd1b54a32d192ed03u));
}
inline uint64_t NeuronMixFromSeed(uint64_t layer_seed, uint64_t neuron) {
  return Mix64(layer_seed + (neuron + 1) * 0x9e3779b97f4a7c15u);
}

inline uint64_t NeuronMix(uint64_t epoch, uint64_t layer, uint64_t neuron) {
  return NeuronMixFromSeed(LayerSeed(epoch, layer), neuron);
}

// Odd, so that multiplying by it loses nothing.
inline uint64_t StepKey(uint64_t nonce, uint64_t step, uint64_t attempt, uint64_t row) {
  return Mix64(Mix64(Mix64(Mix64(nonce) + step) + attempt) + row) | 1;
}

// What a kernel needs to count its work. row_keys: StepKey of each row of the call.
struct NeuronHash {
  uint64_t layer_seed = 0;
  const uint64_t* row_keys = nullptr;
};

// The sum that is due for rows' bitmaps. active: [num_rows, ceil(num_neurons / 64)]; owned: one
// such bitmap ANDed with each row, or null for all; ids outside [first_neuron, last_neuron) do not
// count.
inline uint64_t OwedHash(const NeuronHash& hash, const uint64_t* active, int64_t num_rows,
                         int64_t num_neurons, const uint64_t* owned, int64_t first_neuron,
                         int64_t last_neuron) {
  const int64_t words = (num_neurons + 63) / 64;
  if (last_neuron > num_neurons) last_neuron = num_neurons;
  uint64_t total = 0;
  for (int64_t row = 0; row < num_rows; ++row) {
    uint64_t sum = 0;
    for (int64_t word = first_neuron / 64; word * 64 < last_neuron; ++word) {
      uint64_t bits = active[row * words + word];
      if (owned != nullptr) bits &= owned[word];
      for (; bits != 0; bits &= bits - 1) {
        const int64_t neuron = word * 64 + std::countr_zero(bits);
        if (neuron < first_neuron || neuron >= last_neuron) continue;
        sum += NeuronMixFromSeed(hash.layer_seed, static_cast<uint64_t>(neuron));
      }
    }
    total += hash.row_keys[row] * sum;
  }
  return total;
}

}  // namespace isotherm
