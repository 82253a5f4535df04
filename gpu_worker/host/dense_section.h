#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/kernels/work_hash.h"
#include "common/threading/barrier.h"
#include "common/threading/thread_pool.h"
#include "gpu_worker/device.h"
#include "gpu_worker/host/host_weights.h"
#include "gpu_worker/host/ops/kv_layout.h"
#include "gpu_worker/host/slice.h"
#include "gpu_worker/host/step_buffers.h"
#include "models/model_config.h"

namespace isotherm::gpu {

// Everything of one layer before its neurons: attention, residual, predictor, z and the active set,
// as one parallel section with four barriers (a fifth for large batches). With parallel attention
// the predictor and z read the layer's input and so come first; else they read the residual after
// attention. Owned by the HostDevice; Run is called by the thread that runs the step.
//
// A row's bits depend on the row and its KV alone: every product and sum has an order of its own
// that neither batch-mates nor threads change.
class DenseSection {
 public:
  // All outlive the section. head_dim is even.
  DenseSection(const ModelConfig& config, bool bf16, int64_t max_kv_len, StepBuffers& buffers,
               ThreadPool& pool);

  struct Input {
    const HostWeights::Layer* layer = nullptr;
    KvLayerView kv;
    std::span<const DeviceRow> rows;
    bool exact = false;             // every neuron of every row is active
    NeuronHash hash;                // of the layer; without row keys nothing is hashed
    const uint64_t* hot = nullptr;  // [words]
    uint32_t* predicted = nullptr;  // [ffn_dim]: firings of rows that are not exact are added
  };
  struct Output {
    uint64_t owed_hash = 0;       // of the whole active set
    int64_t active_neurons = 0;   // summed over rows
    int64_t hot_neurons = 0;      // of those
    int64_t active_together = 0;  // of the rows' union
    int64_t hot_together = 0;
  };

  // Reads x, rope_cos and rope_sin; updates x (attention is added), z, z16 and active; writes the
  // rows' keys and values to their pages.
  Output Run(const Input& input);

 private:
  void NormRow(const HostNorm& weights, int64_t row, float* out) const;
  void Rotate(float* values, int64_t dim, int64_t num_rows, Slice slice) const;
  void Project(const Input& input, const float* h, int t);
  void StoreKv(const Input& input, const float* rows, uint16_t* pages, Slice slice) const;
  void AttendRows(const Input& input, int t);
  void Predict(const Input& input, int t);
  void CountPredicted(const Input& input, Slice words) const;
  Output ActivateWords(const Input& input, Slice words);

  const ModelConfig config_;
  const bool bf16_;
  StepBuffers& buffers_;
  ThreadPool& pool_;
  Barrier barrier_;
  const int64_t q_dim_, kv_dim_;
  const int64_t projection_tile_;  // elements of [q | k | v] that stay with one thread
  // Of a thread: attention scratch, then normed rows of a small batch.
  struct alignas(64) PerThread {
    AlignedArray<float> scratch;
    AlignedArray<float> h;
    Output output;
  };
  std::vector<PerThread> threads_;
};

}  // namespace isotherm::gpu
