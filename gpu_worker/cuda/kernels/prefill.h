#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "gpu_worker/cuda/kernels/kernels.h"

// Kernels beside the matrix products of a prefill pass: many rows, layer by layer, neurons in slices.
// Launches are as those of kernels.h.
namespace isotherm::gpu {

// out[r, :] = norm(x[r, :]), rounded to 16 bits.
struct NormRowsArgs {
  const float* x = nullptr;
  int64_t stride = 0;
  int32_t num_rows = 0, columns = 0;
  NormWeights norm;
  uint16_t* out = nullptr;  // [num_rows, columns]
};
void LaunchNormRows(const NormRowsArgs& args, cudaStream_t stream);

// high + low / 2048 = x to 22 bits (F16) or 16 (BF16): two 16-bit products then stand for one with
// F32 input.
struct SplitRowsArgs {
  const float* x = nullptr;
  int64_t count = 0;
  bool bf16 = false;
  uint16_t* high = nullptr;
  uint16_t* low = nullptr;
};
inline constexpr float kLowScale = 2048.0f;
void LaunchSplitRows(const SplitRowsArgs& args, cudaStream_t stream);

// Rows of a matrix of any type as 16 bits, [rows, columns].
struct Decode16Args {
  DeviceMatrix w;
  int64_t columns = 0;  // w.columns, or more of its padding
  int64_t first_row = 0, num_rows = 0;
  bool bf16 = false;
  uint16_t* out = nullptr;
  uint16_t* low = nullptr;  // what `out` lacks, times kLowScale, as of SplitRows; null: not wanted
};
void LaunchDecode16(const Decode16Args& args, cudaStream_t stream);

// qkv: [num_rows, q + 2 kv] products, of rows first_row ... of the step. Adds the bias, rotates, puts
// queries to q and keys and values to their pages.
struct FinishQkvArgs {
  StepPointers step;
  AttentionShape shape;
  int32_t first_row = 0, num_rows = 0;  // of the step; qkv and q begin with it
  const float* qkv = nullptr;
  const float* bias = nullptr;
  const float* rope_cos = nullptr;  // [max_rows, rope_half], by row of the step
  const float* rope_sin = nullptr;
  float* q = nullptr;  // [num_rows, q_dim]
  KvPages kv;
};
void LaunchFinishQkv(const FinishQkvArgs& args, cudaStream_t stream);

// Attention of num_rows rows; args as for LaunchAttention with splits 1.
void LaunchPrefillAttention(const AttentionArgs& args, int num_rows, cudaStream_t stream);

// x[r, :] += bias.
void LaunchAddBias(float* x, const float* bias, int32_t num_rows, int32_t columns,
                   cudaStream_t stream);

// Bundles of `count` listed neurons, 16 bits each weight, one behind the other.
struct GatherBundlesArgs {
  StepPointers step;
  int32_t layer = 0;
  DeviceBundles bundles;
  bool bf16 = false;
  bool streamed = false;                // listed ids in the mapped arena; else slots of the pool
  const unsigned char* pool = nullptr;
  const int32_t* list = nullptr;        // ids or slots
  int32_t count = 0;
  int blocks = 0;
  uint16_t* out = nullptr;  // [count, rows, model_dim]
};
void LaunchGatherBundles(const GatherBundlesArgs& args, cudaStream_t stream);

// values[r, i] = a of neuron ids[i] for the rows whose bit is set, else 0; 16 bits.
struct NeuronValuesArgs {
  StepPointers step;
  int32_t layer = 0;
  int32_t first_row = 0, num_rows = 0;  // of the step
  int32_t num_neurons = 0;
  const int32_t* ids = nullptr;  // [count]
  int32_t count = 0;
  int32_t stride = 0;           // elements of a row of the following; >= count
  const float* gate = nullptr;  // [num_rows, stride]
  const float* up = nullptr;    // likewise; null: bundles of two rows
  Activation activation = Activation::kRelu;
  bool activate_up = false;
  const float* up_bias = nullptr;  // [num_neurons]
  const uint64_t* active = nullptr;  // [max_rows, words]
  bool bf16 = false;
  uint32_t* fired = nullptr;    // [num_neurons]
  uint16_t* values = nullptr;   // [num_rows, stride]
};
void LaunchNeuronValues(const NeuronValuesArgs& args, cudaStream_t stream);

// active bits, their hash and counts from scores [num_rows, num_neurons]; null scores: every neuron.
struct ActivateRowsArgs {
  StepPointers step;
  int32_t layer = 0;
  int32_t first_row = 0, num_rows = 0;
  int32_t num_neurons = 0;
  const float* scores = nullptr;
  float threshold = 0;
  uint64_t* active = nullptr;
  uint32_t* predicted = nullptr;
};
void LaunchActivateRows(const ActivateRowsArgs& args, cudaStream_t stream);

// The neurons that a pass computes on this side: of the hot ones their ids and slots, of the cold ones
// from the cut on their ids; ascending. With `only_active` those that are active in a row of it.
struct ListNeuronsArgs {
  StepPointers step;
  int32_t layer = 0;
  int32_t num_rows = 0, num_neurons = 0;
  bool only_active = false;
  const uint64_t* active = nullptr;
  int32_t *hot_ids = nullptr, *hot_slots = nullptr, *cold_ids = nullptr;  // [num_neurons]
  int32_t* counts = nullptr;  // hot, cold: pinned host memory
};
void LaunchListNeurons(const ListNeuronsArgs& args, cudaStream_t stream);

// relu in place.
void LaunchRelu(float* x, int64_t count, cudaStream_t stream);

}  // namespace isotherm::gpu
