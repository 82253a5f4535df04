#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/kernels/sparse_ffn.h"
#include "common/telemetry/counter_table.h"
#include "common/threading/thread_pool.h"
#include "gpu_worker/device.h"
#include "gpu_worker/engine/hot_pool.h"
#include "gpu_worker/host/cold_balance.h"
#include "gpu_worker/host/dense_section.h"
#include "gpu_worker/host/host_weights.h"
#include "gpu_worker/host/logits_section.h"
#include "gpu_worker/host/ops/kv_layout.h"
#include "gpu_worker/host/ops/rope.h"
#include "gpu_worker/host/step_buffers.h"
#include "models/model_file.h"

namespace isotherm::gpu {

struct HostDeviceOptions {
  int num_threads = 0;  // 0: DefaultThreadCount()
  int32_t kv_pages = 0;
  int32_t max_rows = 256;
  int64_t hot_capacity_bytes = 0;  // of one epoch's hot neurons
  // For tests: the bytes of freed slots are overwritten, so that whoever still reads them shows.
  bool poison_freed = false;
};

// The backend for machines without a GPU: the same step on CPU threads. See Device for the
// contract.
class HostDevice final : public Device {
 public:
  // `model` outlives the device. InvalidArgument for options or a model it cannot compute;
  // ResourceExhausted when the memory cannot be had.
  static absl::StatusOr<std::unique_ptr<HostDevice>> Create(
      const ModelFile& model, const HostDeviceOptions& options,
      const std::function<void(double)>& progress = {});

  DeviceInfo Describe() const override;
  absl::Status Prepare(const PlacementPlan& plan, const NeuronStore* source,
                       const std::function<void(int64_t, int64_t)>& progress) override;
  // Gives memory back, too, when the hot set has become smaller.
  absl::Status Retire(int64_t epoch) override;
  void SetShares(int64_t hot_capacity_bytes, int32_t kv_pages) override;
  bool Has(int64_t epoch) const override { return hot_pool_.Find(epoch) != nullptr; }
  absl::Status RunStep(const DeviceBatch& batch, const ColdSide& cold,
                       DeviceOutput* output) override;
  absl::Status ReadCounters(NeuronCounters* counters) override {
    counters_.Read(counters);
    return absl::OkStatus();
  }

  // From the next step on, to measure what they cost: without counts for the placement_service, or
  // without the completeness hash.
  void LeaveOut(bool counts, bool hash) {
    count_neurons_ = !counts;
    hash_work_ = !hash;
  }

  // Weight bytes that a decoded token needs beside its neurons.
  int64_t dense_bytes() const {
    return weights_.head.rows > 0 ? weights_.bytes - weights_.embedding_bytes() : weights_.bytes;
  }

  // Of the last step: residual rows [num_rows, model_dim] and the logits of its sampling rows; for
  // tests that compare them.
  std::span<const float> residual() const {
    return {buffers_.x.data(), static_cast<size_t>(options_.max_rows * config_.model_dim)};
  }
  const std::vector<float>& logits() const { return logits_.logits(); }
  // Where hot neurons' copies lie, for tests that look which pages are there.
  std::span<const std::byte> hot_memory() const {
    return {hot_storage_.data(), hot_storage_.size()};
  }

 private:
  HostDevice(const ModelFile& model, HostWeights weights, const HostDeviceOptions& options,
             AlignedBytes kv, std::unique_ptr<SparseFfnWorkspace> workspace);

  struct LayerPolicy {
    LayerMode mode = LayerMode::kHybrid;
    bool trace = false;
  };
  struct StepState;
  // Of a layer, on this side.
  struct OwnCosts {
    uint64_t hot_bytes = 0, cold_bytes = 0;  // read
    float hot_us = 0;                        // hot neurons alone
  };
  std::byte* HotSlot(int32_t slot) {
    return hot_storage_.data() + int64_t{slot} * layout_.bundle_bytes;
  }
  void TrimHotMemory();
  absl::Status Check(const DeviceBatch& batch);
  void Embed(const DeviceBatch& batch);
  void AddPosition(int32_t position, float* x);
  absl::Status RunLayer(int64_t layer, const ColdSide& cold, StepState& step);
  absl::Status RunNeurons(int64_t layer, const DenseSection::Output& active, const ColdSide& cold,
                          StepState& step, LayerTiming& timing);
  // What of the active neurons to compute here, and where to.
  struct OwnWork {
    int64_t layer = 0;
    BundleView bundles;
    const uint64_t* owned = nullptr;
    int64_t first = 0, last = 0;  // ids
    bool shared = false;          // the cpu_worker computes on the same cores meanwhile
    float* partial = nullptr;
    uint64_t* bytes_read = nullptr;  // added to
  };
  absl::Status ComputeOwned(const OwnWork& work, StepState& step);
  void CountLayer(int64_t layer, const LayerTiming& timing, const OwnCosts& own,
                  const StepState& step);
  KvLayerView KvLayer(int64_t layer);

  const ModelFile& model_;
  const ModelConfig config_;
  const BundleLayout layout_;
  const HostDeviceOptions options_;
  const bool bf16_;  // z and KV are BF16
  const HostWeights weights_;
  HotPool hot_pool_;
  AlignedBytes hot_storage_;
  std::atomic<bool> trim_due_ = false;
  AlignedBytes kv_;
  int32_t kv_pages_named_;  // steps name those below
  ThreadPool pool_;
  const std::unique_ptr<SparseFfnWorkspace> workspace_;
  const RopeTable rope_;
  StepBuffers buffers_;
  DenseSection dense_;
  LogitsSection logits_;
  std::vector<int32_t> row_keys_;  // 0, 1, ..: a row's number in its step
  std::vector<LayerPolicy> policies_;
  CounterTable counters_;
  bool count_neurons_ = true, hash_work_ = true;
  std::vector<float> position_row_;  // scratch
  ColdBalance balance_;
};

}  // namespace isotherm::gpu
