#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "common/telemetry/neuron_counters.h"

namespace isotherm {

// A word that one thread at a time adds to while others read it. No locked instruction: a writer
// owns the word for the moment.
inline void AddRelaxed(uint32_t& word, uint32_t by) {
  std::atomic_ref<uint32_t> shared(word);
  shared.store(shared.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
}

// NeuronCounters that compute threads add to and a sampler reads at any time, each word for
// itself. Counting takes no lock and makes no call.
class CounterTable {
 public:
  // Without `predicted` there are no counts of it.
  CounterTable(int64_t num_layers, int64_t num_neurons, bool predicted);

  // [num_neurons], for AddRelaxed by whoever owns the neuron at the time.
  uint32_t* predicted(int64_t layer) { return predicted_.data() + layer * num_neurons_; }
  uint32_t* fired(int64_t layer) { return fired_.data() + layer * num_neurons_; }

  // By one thread at a time, a layer after the other.
  void AddLayer(int64_t layer, const LayerCounters& counts);
  void AddStep(int64_t epoch, int64_t decode_rows);  // 0: not a decode step

  // Any thread. `out` is sized here and may be reused.
  void Read(NeuronCounters* out) const;

 private:
  static constexpr size_t kLayerWords = sizeof(LayerCounters) / sizeof(uint64_t);

  const int64_t num_layers_, num_neurons_;
  // atomic_ref's target is not const in C++20.
  mutable std::vector<uint32_t> predicted_, fired_;
  mutable std::vector<uint64_t> layers_;  // [num_layers, kLayerWords]
  std::atomic<int64_t> epoch_{kBuiltInEpoch};
  std::atomic<uint64_t> epoch_changes_{0}, steps_{0}, decode_steps_{0}, decode_rows_{0};
};

}  // namespace isotherm
