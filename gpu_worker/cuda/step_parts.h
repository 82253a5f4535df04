#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "gpu_worker/cuda/cuda_weights.h"
#include "gpu_worker/cuda/kernels/kernels.h"
#include "models/bundle_layout.h"
#include "models/model_config.h"

namespace isotherm::gpu {

// Where the inputs of a step lie in their one block, the same on the host and on the device, and
// what of it a step of `rows` rows needs: the front, so that a small step copies little.
struct StepInputs {
  int64_t header = 0, layers = 0, rows = 0, logit_rows = 0, samples = 0, pages = 0, bytes = 0;
  int32_t max_rows = 0, max_pages = 0;

  static StepInputs Make(int64_t num_layers, int32_t max_rows, int32_t max_logits,
                         int32_t max_pages);
  int64_t BytesFor(int64_t page_tables) const { return pages + page_tables * max_pages * 4; }
};

// Device memory that a step works in.
struct StepBuffersCuda {
  float *x = nullptr, *q = nullptr, *attention = nullptr, *hidden = nullptr;
  float *hot_partial = nullptr, *streamed_partial = nullptr, *cold_sums = nullptr;
  int32_t *hot_computed = nullptr, *streamed_computed = nullptr;  // [row tiles]
  float *rope_cos = nullptr, *rope_sin = nullptr, *logits = nullptr;
  uint16_t* z = nullptr;
  uint64_t* active = nullptr;
  uint32_t *predicted = nullptr, *fired = nullptr;  // [num_layers, num_neurons]; never reset
  uint64_t* read = nullptr;  // [num_layers], bundles read over PCIe; never reset
  unsigned char* attention_scratch = nullptr;
  double* rope_frequencies = nullptr;
  const unsigned char* inputs = nullptr;
  const int32_t* withdrawn = nullptr;  // EmbedArgs
  StepState* state = nullptr;          // StateBytes
  LayerTimes* times = nullptr;         // behind it
  int32_t* tokens = nullptr;           // behind them
  LayerTrace* traces = nullptr;
  int32_t hidden_stride = 0;
};

// What both ways to run a step, StepGraph and PrefillPass, work with, and what they have in common.
struct StepParts {
  const ModelConfig* config = nullptr;
  const BundleLayout* layout = nullptr;
  const CudaWeights* weights = nullptr;
  StepBuffersCuda buffers;
  StepInputs inputs;
  uint16_t* kv = nullptr;
  int32_t kv_pages = 0;
  const unsigned char* pool = nullptr;  // hot neurons

  bool bf16() const { return layout->dtype == DType::kBF16; }
  StepPointers Pointers() const;
  AttentionShape Shape() const;
  NormWeights NormOf(const CudaWeights::Norm& norm) const;
  DeviceBundles Bundles() const;
  KvPages KvOf(int32_t layer) const;
  // A layer's predictor and what makes active sets of it, for few rows. posts: the last block hands
  // the layer to the cpu side.
  void Predict(int32_t layer, bool posts, int32_t rows, cudaStream_t stream) const;
  // Embeds the tokens; the inputs are there.
  void Begin(int32_t rows, cudaStream_t stream) const;
  // Logits of the rows that sample, and their tokens.
  void End(int32_t logits, cudaStream_t stream) const;
};

}  // namespace isotherm::gpu
