#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/kernels/sparse_ffn.h"
#include "common/threading/barrier.h"
#include "common/threading/thread_pool.h"
#include "gpu_worker/device.h"
#include "gpu_worker/host/host_weights.h"
#include "gpu_worker/host/hot_pool.h"
#include "gpu_worker/host/ops/attention.h"
#include "models/model_file.h"

namespace isotherm::gpu {

struct HostDeviceOptions {
  int num_threads = 0;  // 0: DefaultThreadCount()
  int32_t kv_pages = 0;
  int32_t max_rows = 256;
  int64_t hot_capacity_bytes = 0;
  // Where Prepare copies bundles from while no arena is mapped; set by the engine.
};

// The backend for machines without a GPU: the same step on CPU threads. See Device for the
// contract.
class HostDevice final : public Device {
 public:
  // `model` outlives the device. ResourceExhausted when the KV pool cannot be had.
  static absl::StatusOr<std::unique_ptr<HostDevice>> Create(
      const ModelFile& model, const HostDeviceOptions& options,
      const std::function<void(double)>& progress = {});

  DeviceInfo Describe() const override;
  absl::Status Prepare(const PlacementPlan& plan,
                       const std::function<void(int64_t, int64_t)>& progress) override;
  absl::Status Retire(int64_t epoch) override { return hot_pool_.Retire(epoch); }
  bool Has(int64_t epoch) const override { return hot_pool_.Find(epoch) != nullptr; }
  absl::Status RunStep(const DeviceBatch& batch, const ColdSide& cold,
                       DeviceOutput* output) override;

  // Weight bytes that a decoded token needs beside its neurons.
  int64_t dense_bytes() const {
    return weights_.head.rows > 0 ? weights_.bytes - weights_.embedding_bytes() : weights_.bytes;
  }

  // Residual rows after the last step, [num_rows, model_dim]; for tests that compare bits.
  std::span<const float> residual() const { return x_; }

 private:
  HostDevice(const ModelFile& model, HostWeights weights, const HostDeviceOptions& options);

  struct StepState;
  void Embed(const DeviceBatch& batch);
  void PrepareRope(const DeviceBatch& batch);
  // Attention, residual, predictor and z of one layer: one parallel section.
  void RunDensePart(int64_t layer, StepState& step);
  absl::Status RunNeurons(int64_t layer, const ColdSide& cold, StepState& step);
  absl::Status ComputeOwned(const BundleView& bundles, const uint64_t* owned, float* partial,
                            StepState& step, uint64_t* work_hash);
  void Logits(StepState& step);
  KvLayerView KvLayer(int64_t layer);

  const ModelFile& model_;
  const ModelConfig config_;
  const BundleLayout layout_;
  const HostWeights weights_;
  const HostDeviceOptions options_;
  HotPool hot_pool_;
  ThreadPool pool_;
  Barrier barrier_;
  std::unique_ptr<SparseFfnWorkspace> workspace_;
  bool bf16_ = false;  // z and KV are BF16
  int64_t words_ = 0;
  int64_t max_rank_ = 0;

  AlignedBytes kv_;
  // [max_rows, ..], row-major
  std::vector<float> x_, h_, q_, k_, v_, attention_, hidden_, scores_, z_, hot_partial_,
      cold_partial_;
  std::vector<std::vector<float>> thread_h_;  // per thread, [model_dim]
  std::vector<uint16_t> z16_;
  std::vector<uint64_t> active_;
  std::vector<float> rope_cos_, rope_sin_;
  std::vector<std::vector<float>> attention_scratch_;  // per thread, [context]
  std::vector<float> gathered_, logits_;
  std::vector<int32_t> row_keys_;
  std::vector<uint64_t> step_keys_;
};

}  // namespace isotherm::gpu
