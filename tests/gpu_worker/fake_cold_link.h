#pragma once

#include <atomic>
#include <vector>

#include "common/kernels/work_hash.h"
#include "gpu_worker/engine/cold_side.h"
#include "tests/reference/sparse_ffn.h"

namespace isotherm::gpu {

// A cpu_worker in this process: plain loops over the neurons it is given, and death on demand. It
// owns the neurons whose bit is not set in `hot`, the same in every layer.
class FakeColdLink final : public ColdLink {
 public:
  enum class Dies { kNever, kAtPost, kAtWait, kAtEnd };

  FakeColdLink(const NeuronStore& neurons, std::vector<uint64_t> hot)
      : neurons_(neurons), cold_(std::move(hot)) {
    for (uint64_t& word : cold_) word = ~word;
  }
  // At that moment of that layer, in the next step.
  void DieAt(Dies when, int32_t layer) {
    dies_in_ = layer;
    dies_ = when;
  }
  bool alive() const override { return alive_; }
  uint64_t hash_nonce() const override { return 77; }

  absl::Status Post(const ColdLayer& layer) override {
    if (!Lives(Dies::kAtPost, layer.layer)) return Gone();
    layer_ = layer;  // its arrays stay until the step's next layer
    cuts_.push_back(layer.cut);
    return absl::OkStatus();
  }
  // Computes only now, so that it is always waited for.
  absl::StatusOr<ColdResult> Wait(TimePoint) override {
    if (!Lives(Dies::kAtWait, layer_.layer)) return Gone();
    const ColdLayer& layer = layer_;
    const std::vector<uint64_t> keys = Keys(layer);
    const NeuronHash hash{
        LayerSeed(static_cast<uint64_t>(layer.epoch), static_cast<uint64_t>(layer.layer)),
        keys.data()};
    SparseFfnParams params;
    params.bundles = neurons_.Layer(layer.layer);
    (params.bundles.dtype == DType::kBF16 ? params.z_bf16 : params.z_f16) = layer.z;
    params.num_rows = layer.num_rows;
    params.active = layer.active;
    params.owned = cold_.data();
    params.last_neuron = layer.cut;
    params.hash = &hash;
    const reference::SparseFfnResult result = reference::SparseFfn(params);
    partial_.assign(result.partial.begin(), result.partial.end());
    reported_ += result.work_hash;
    return ColdResult{.partial = partial_.data(), .work_hash = result.work_hash, .compute_us = 100};
  }
  absl::Status EndOfStep(int64_t, int64_t, int32_t, TimePoint) override {
    return Lives(Dies::kAtEnd, dies_in_) ? absl::OkStatus() : Gone();
  }

  // Of all results so far: what a cpu_worker would report to the gateway.
  uint64_t reported() const { return reported_; }
  // Of all posts so far.
  const std::vector<int32_t>& cuts() const { return cuts_; }

 private:
  static absl::Status Gone() { return absl::UnavailableError("the fake has died"); }
  bool Lives(Dies when, int32_t layer) {
    if (dies_ == when && dies_in_ == layer) alive_ = false;
    return alive_;
  }
  std::vector<uint64_t> Keys(const ColdLayer& layer) const {
    std::vector<uint64_t> keys;
    for (int32_t row = 0; row < layer.num_rows; ++row) {
      keys.push_back(StepKey(hash_nonce(), static_cast<uint64_t>(layer.step_id),
                             static_cast<uint64_t>(layer.attempt),
                             static_cast<uint64_t>(layer.row_keys[row])));
    }
    return keys;
  }

  const NeuronStore& neurons_;
  std::vector<uint64_t> cold_;
  std::atomic<Dies> dies_{Dies::kNever};
  std::atomic<int32_t> dies_in_{-1};
  std::atomic<bool> alive_{true};
  ColdLayer layer_;
  std::vector<float> partial_;
  std::atomic<uint64_t> reported_{0};
  std::vector<int32_t> cuts_;
};

}  // namespace isotherm::gpu
