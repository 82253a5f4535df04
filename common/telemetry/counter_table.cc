#include "common/telemetry/counter_table.h"

#include <cstring>
#include <type_traits>

namespace isotherm {
namespace {

template <typename Word>
void Bump(std::atomic<Word>& word, Word by) {
  word.store(word.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
}

template <typename Word>
void CopyRelaxed(std::vector<Word>& from, Word* to) {
  for (Word& word : from) *to++ = std::atomic_ref<Word>(word).load(std::memory_order_relaxed);
}

}  // namespace

CounterTable::CounterTable(int64_t num_layers, int64_t num_neurons, bool predicted)
    : num_layers_(num_layers),
      num_neurons_(num_neurons),
      predicted_(predicted ? static_cast<size_t>(num_layers * num_neurons) : 0),
      fired_(static_cast<size_t>(num_layers * num_neurons)),
      layers_(static_cast<size_t>(num_layers) * kLayerWords) {}

void CounterTable::AddLayer(int64_t layer, const LayerCounters& counts) {
  static_assert(std::is_trivially_copyable_v<LayerCounters> &&
                sizeof(LayerCounters) == kLayerWords * sizeof(uint64_t));
  uint64_t add[kLayerWords];
  std::memcpy(add, &counts, sizeof(add));
  uint64_t* const words = layers_.data() + static_cast<size_t>(layer) * kLayerWords;
  for (size_t i = 0; i < kLayerWords; ++i) {
    std::atomic_ref<uint64_t> word(words[i]);
    word.store(word.load(std::memory_order_relaxed) + add[i], std::memory_order_relaxed);
  }
}

void CounterTable::AddStep(int64_t epoch, int64_t decode_rows) {
  if (epoch_.load(std::memory_order_relaxed) != epoch) {
    epoch_.store(epoch, std::memory_order_relaxed);
    if (steps_.load(std::memory_order_relaxed) != 0) Bump<uint64_t>(epoch_changes_, 1);
  }
  Bump<uint64_t>(steps_, 1);
  if (decode_rows == 0) return;
  Bump<uint64_t>(decode_steps_, 1);
  Bump<uint64_t>(decode_rows_, static_cast<uint64_t>(decode_rows));
}

void CounterTable::Read(NeuronCounters* out) const {
  out->epoch_changes = epoch_changes_.load(std::memory_order_relaxed);
  out->epoch = epoch_.load(std::memory_order_relaxed);
  out->steps = steps_.load(std::memory_order_relaxed);
  out->decode_steps = decode_steps_.load(std::memory_order_relaxed);
  out->decode_rows = decode_rows_.load(std::memory_order_relaxed);
  out->layers.resize(static_cast<size_t>(num_layers_));
  uint64_t words[kLayerWords];
  for (size_t l = 0; l < out->layers.size(); ++l) {
    for (size_t i = 0; i < kLayerWords; ++i) {
      words[i] =
          std::atomic_ref<uint64_t>(layers_[l * kLayerWords + i]).load(std::memory_order_relaxed);
    }
    std::memcpy(&out->layers[l], words, sizeof(words));
  }
  out->predicted.resize(predicted_.size());
  CopyRelaxed(predicted_, out->predicted.data());
  out->fired.resize(fired_.size());
  CopyRelaxed(fired_, out->fired.data());
}

}  // namespace isotherm
