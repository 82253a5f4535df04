#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "gpu_worker/cuda/kernels/kernels.h"

// Kernels beside the matrix products of a prefill pass: many rows, layer by layer, neurons in
// slices. Launches are as those of kernels.h.
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
  int64_t x_stride = 0;  // a multiple of 4
  int32_t num_rows = 0, columns = 0;
  int32_t out_stride = 0;  // a multiple of 4; zero from `columns` on
  bool relu = false;       // of relu(x) instead
  bool bf16 = false;
  uint16_t* high = nullptr;  // [num_rows, out_stride]
  uint16_t* low = nullptr;
};
inline constexpr float kLowScale = 2048.0f;
void LaunchSplitRows(const SplitRowsArgs& args, cudaStream_t stream);

// Rows of a matrix of any type as 16 bits, [rows, columns]; zero from w.rows on.
struct Decode16Args {
  DeviceMatrix w;
  int64_t columns = 0;  // w.columns, or more of its padding; a multiple of 8
  int64_t first_row = 0, num_rows = 0;
  bool bf16 = false;
  uint16_t* out = nullptr;
  uint16_t* low = nullptr;  // what `out` lacks, times kLowScale, as of SplitRows; null: not wanted
};
void LaunchDecode16(const Decode16Args& args, cudaStream_t stream);

// qkv: [num_rows, q + 2 kv] products, of rows first_row ... of the step. Adds the bias, rotates,
// puts queries to q and keys and values to their pages.
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

// Products want their rows in eights: what a list ends short of that is filled up. Gathered bundles
// repeat the last one, values are zero.
inline constexpr int32_t kListStep = 8;
__host__ __device__ inline constexpr int32_t PaddedCount(int32_t count) {
  return (count + kListStep - 1) / kListStep * kListStep;
}

// Bundles of `count` listed neurons, 16 bits each weight, one behind the other.
struct GatherBundlesArgs {
  StepPointers step;
  int32_t layer = 0;
  DeviceBundles bundles;
  bool bf16 = false;
  bool streamed = false;  // listed ids in the mapped arena; else slots of the pool
  const unsigned char* pool = nullptr;
  const int32_t* list = nullptr;  // ids or slots
  int32_t count = 0;
  int blocks = 0;
  uint16_t* out = nullptr;  // [PaddedCount(count), rows, model_dim]
};
void LaunchGatherBundles(const GatherBundlesArgs& args, cudaStream_t stream);

// values[r, i] = a of the i-th neuron for the rows whose bit is set, else 0; 16 bits.
struct NeuronValuesArgs {
  StepPointers step;
  int32_t layer = 0;
  int32_t first_row = 0, num_rows = 0;  // of the step
  int32_t num_neurons = 0;
  const int32_t* ids = nullptr;  // [count]; null: first_id and those behind it
  int32_t first_id = 0;
  int32_t count = 0;
  int32_t stride = 0;           // elements of a row of the following; >= PaddedCount(count)
  const float* gate = nullptr;  // [num_rows, stride]
  const float* up = nullptr;    // likewise; null: bundles of two rows
  Activation activation = Activation::kRelu;
  bool activate_up = false;
  const float* up_bias = nullptr;    // [num_neurons]
  const uint64_t* active = nullptr;  // [max_rows, words]
  bool bf16 = false;
  uint32_t* fired = nullptr;   // [num_neurons]
  uint64_t* read = nullptr;    // counts the neurons, once; null: not wanted
  uint16_t* values = nullptr;  // [num_rows, stride]
};
void LaunchNeuronValues(const NeuronValuesArgs& args, cudaStream_t stream);

// active bits, their hash and counts, of `count` neurons; null scores: all of them are.
struct ActivateRowsArgs {
  StepPointers step;
  int32_t layer = 0;
  int32_t first_row = 0, num_rows = 0;
  int32_t num_neurons = 0;
  int32_t first_neuron = 0, count = 0;  // the first a multiple of 64, and so the count but the last
  const float* scores = nullptr;        // [num_rows, stride], of these neurons
  int32_t stride = 0;
  float threshold = 0;
  uint64_t* active = nullptr;
  uint32_t* predicted = nullptr;
};
void LaunchActivateRows(const ActivateRowsArgs& args, cudaStream_t stream);

// The neurons that a pass computes on this side: of the hot ones their ids and slots, of the cold
// ones in [first_cold, last_cold) from the cut on their ids; ascending. With `only_active` those
// that are active in a row of it.
struct ListNeuronsArgs {
  StepPointers step;
  int32_t layer = 0;
  int32_t num_rows = 0, num_neurons = 0;
  bool only_active = false;
  int32_t first_cold = 0, last_cold = 0;
  const uint64_t* to_cpu = nullptr;  // [words], left out, too, instead of those below the cut
  const uint64_t* active = nullptr;
  // [num_neurons]; no hot_ids: cold ones alone.
  int32_t *hot_ids = nullptr, *hot_slots = nullptr, *cold_ids = nullptr;
  // Pinned host memory: hot, cold, and the LayerTimes of the layer before; null: known.
  int32_t* counts = nullptr;
};
void LaunchListNeurons(const ListNeuronsArgs& args, cudaStream_t stream);

// Which active cold neurons the cpu side computes, as bits; none when it is not there.
struct DivideRowsArgs {
  StepPointers step;
  int32_t layer = 0;
  int32_t num_rows = 0, num_neurons = 0;
  int32_t last = 0;                  // ids from here on are this side's
  const uint64_t* active = nullptr;  // [num_rows, words]
  float level = -1;                  // ShareLevel; below 0: ids below the cut
  uint64_t* to_cpu = nullptr;        // [words]
};
void LaunchDivideRows(const DivideRowsArgs& args, cudaStream_t stream);

// Posts the layer to the cpu side, if there is something for it: z and its share of the active sets
// of all rows to the slot, then the doorbell.
struct PostRowsArgs {
  StepPointers step;
  int32_t layer = 0;
  int32_t num_rows = 0, num_neurons = 0, model_dim = 0;
  const uint64_t* active = nullptr;  // [num_rows, words]
  const uint64_t* to_cpu = nullptr;  // [words]
  const uint16_t* z = nullptr;       // [num_rows, model_dim]
};
void LaunchPostRows(const PostRowsArgs& args, cudaStream_t stream);

// The device's time, when all before is done.
void LaunchMark(uint64_t* at, cudaStream_t stream);

}  // namespace isotherm::gpu
