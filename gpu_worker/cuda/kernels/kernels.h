#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/tensor/activation.h"
#include "gpu_worker/cuda/kernels/device_matrix.h"
#include "gpu_worker/cuda/kernels/step_data.h"

// The kernels of a step. Each launch is asynchronous on `stream`, may be captured, and reads what
// changes from step to step through the pointers below. Row counts are upper bounds: rows from
// header->num_rows on are left alone. Launches report errors through cudaGetLastError().
namespace isotherm::gpu {

// Whether a kernel may begin before the one ahead of it has ended, where the device can (sm_90 on);
// on from the start. To be set before any launch. An `early` of false forbids it to one: what runs
// beside the streamed neurons must not sit on multiprocessors while it waits, for those need whole
// ones.
void AllowEarlyLaunch(bool allowed);
bool EarlyLaunchAllowed();

// Device addresses of a step's inputs; they never change.
struct StepPointers {
  const StepHeader* header = nullptr;
  const LayerStep* layers = nullptr;     // [num_layers]
  const StepRow* rows = nullptr;         // [max_rows]
  const int32_t* logit_rows = nullptr;   // [num_logits], rows whose logits are wanted
  const SampleRow* samples = nullptr;    // [num_logits]
  const int32_t* page_tables = nullptr;  // [tables, header->max_pages]
  StepState* state = nullptr;
  LayerTimes* times = nullptr;   // [num_layers]
  int32_t* tokens = nullptr;     // [num_logits], sampled
  LayerTrace* traces = nullptr;  // [num_layers]
};

enum class NormOp : int32_t { kNone, kRms, kLayer };

struct NormWeights {
  NormOp kind = NormOp::kNone;
  const float* weight = nullptr;
  const float* bias = nullptr;  // of kLayer; null: none
  float eps = 0;
  bool bf16 = false;  // which 16-bit type the normed values are rounded to
};

// x of a product: rows of `x`, `stride` floats apart, normed on the way in. gather: which rows, or
// null for all in order. num_rows: device address of how many.
struct ProductInput {
  const float* x = nullptr;
  int64_t stride = 0;
  const int32_t* gather = nullptr;
  const int32_t* num_rows = nullptr;
  NormWeights norm;
};

enum class ProductOutput { kStore, kRelu, kAdd };

// Where the keys and values of a layer lie: [page][kv_head][token of the page][head_dim], 16 bits.
struct KvPages {
  uint16_t* keys = nullptr;
  uint16_t* values = nullptr;
};

struct AttentionShape {
  int32_t num_q_heads = 0, num_kv_heads = 0, head_dim = 0;
  int32_t rope_half = 0;
  bool rope_neox = false;
  bool bf16 = false;
};

// State reset, embedding rows to x, angles of the rotary embedding. A step that follows one that
// failed or sampled a stop token gets no rows.
// embedding: in the file's blocks, rows embedding_row_bytes apart, host or device memory.
struct EmbedArgs {
  StepPointers step;
  DType dtype = DType::kF16;
  const unsigned char* embedding = nullptr;
  int64_t embedding_row_bytes = 0;
  // Learned positions: row p + position_offset is added; null: none. Of the same form.
  DType positions_dtype = DType::kF16;
  const unsigned char* positions = nullptr;
  int64_t positions_row_bytes = 0;
  int32_t position_offset = 0;
  int32_t model_dim = 0;
  float* x = nullptr;                        // [max_rows, model_dim]
  const double* rope_frequencies = nullptr;  // [rope_half]
  int32_t rope_half = 0;
  float* rope_cos = nullptr;  // [max_rows, rope_half]
  float* rope_sin = nullptr;
  const int32_t* withdrawn = nullptr;  // StepHeader::number, in page-locked memory
};
void LaunchEmbed(const EmbedArgs& args, int max_rows, cudaStream_t stream);

// y[r, :] (op)= w * in[r]. y: rows `y_stride` floats apart, in order of the input's rows.
struct ProductArgs {
  ProductInput in;
  DeviceMatrix w;
  const float* bias = nullptr;  // [w.rows], added to w * in[r]; null: none
  float* y = nullptr;
  int64_t y_stride = 0;
  ProductOutput output = ProductOutput::kStore;
  bool early = true;
};
void LaunchProduct(const ProductArgs& args, int max_rows, cudaStream_t stream);

// [q | k | v] = w * in; q and k rotated, k and v stored to their pages.
struct QkvArgs {
  StepPointers step;
  ProductInput in;
  DeviceMatrix w;
  AttentionShape shape;
  const float* bias = nullptr;  // [w.rows]; null: none
  const float* rope_cos = nullptr;
  const float* rope_sin = nullptr;
  float* q = nullptr;  // [max_rows, num_q_heads * head_dim]
  KvPages kv;
  int32_t layer = 0;
  bool begins_layer = false;  // the layer's first kernel: it notes the time
  bool early = true;
};
void LaunchQkv(const QkvArgs& args, int max_rows, cudaStream_t stream);

inline constexpr int kAttentionSplits = 8;  // at most
// Bytes of `scratch` for rows and heads.
int64_t AttentionScratchBytes(const AttentionShape& shape, int max_rows);

struct AttentionArgs {
  StepPointers step;
  AttentionShape shape;
  int32_t first_row = 0;     // of the step; q and out begin with it
  const float* q = nullptr;  // [max_rows, num_q_heads * head_dim]
  KvPages kv;
  // Ranges that a row's tokens are split into, so that few rows fill the device; 1: none, without
  // scratch.
  int32_t splits = kAttentionSplits;
  unsigned char* scratch = nullptr;  // zero before its first use
  int32_t max_rows = 0;              // that scratch was made for
  float* out = nullptr;              // [max_rows, num_q_heads * head_dim]
  bool early = true;
};
void LaunchAttention(const AttentionArgs& args, int max_rows, cudaStream_t stream);

// hidden = relu(fc1 * x) and z = norm(x), rounded to 16 bits. Without a predictor only z.
struct PredictArgs {
  StepPointers step;
  int32_t layer = 0;
  const float* x = nullptr;  // [max_rows, model_dim]
  int32_t model_dim = 0;
  NormWeights norm;         // of z
  DeviceMatrix fc1;         // rows 0: none
  float* hidden = nullptr;  // [max_rows, hidden_stride]
  int32_t hidden_stride = 0;
  uint16_t* z = nullptr;  // [max_rows, model_dim]
  bool begins_layer = false;
  bool posts = true;  // to the cpu side, if there is one
};
void LaunchPredict(const PredictArgs& args, int max_rows, cudaStream_t stream);

// The active sets, and the post of the layer to the cpu side by the last block.
struct ActivateArgs {
  StepPointers step;
  int32_t layer = 0;
  int32_t num_neurons = 0;
  const float* hidden = nullptr;
  int32_t hidden_stride = 0;
  DeviceMatrix fc2;  // rows 0: every neuron is active
  float threshold = 0;
  uint64_t* active = nullptr;     // [max_rows, words]
  uint32_t* predicted = nullptr;  // [num_neurons], counts of the rows that name a neuron
  const uint16_t* z = nullptr;
  int32_t model_dim = 0;
  bool posts = true;  // to the cpu side, if there is one
};
void LaunchActivate(const ActivateArgs& args, int max_rows, cudaStream_t stream);

inline constexpr int64_t kMaxModelDim = 8192;  // of LaunchNeurons
inline constexpr int kHotBlocks = 132;
// With more, what lies ahead in PCIe's queue slows the cores' reads beside them: 7B at 8 GiB 92.7
// and 96.2 tokens/s with 32, 97.0 with 24, 98.2 and 98.5 with 16, 99.4 with 12, 97.2 with 8.
inline constexpr int kStreamBlocks = 16;
// Of a step's rows, how many share a block, and how many blocks each of their tiles then has.
struct RowTiling {
  int rows = 1, tiles = 1;
  int BlocksOfTile(int blocks) const { return tiles >= blocks ? 1 : blocks / tiles; }
};
RowTiling TilingOf(int max_rows);
// Floats of a partial-sum buffer for `blocks` that serves every batch up to max_rows.
int64_t PartialFloats(int blocks, int max_rows, int64_t model_dim);

// Where the blocks of a kind of neurons leave their sums.
struct PartialSums {
  float* sums = nullptr;        // PartialFloats()
  int32_t* computed = nullptr;  // [row tiles]: how many neurons there were
};

// Partial sums of this side's active neurons: the hot ones from the pool, and the cold ones from
// the cut on, streamed from the mapped arena. LaunchMerge adds them up.
struct NeuronsArgs {
  StepPointers step;
  int32_t layer = 0;
  int32_t num_neurons = 0;
  DeviceBundles bundles;
  Activation activation = Activation::kRelu;
  bool activate_up = false;             // the second factor, too
  const float* up_bias = nullptr;       // [num_neurons], of bundles of two rows; null: none
  const unsigned char* pool = nullptr;  // of hot neurons
  const uint64_t* active = nullptr;
  const uint16_t* z = nullptr;
  bool bf16 = false;
  uint32_t* fired = nullptr;  // [num_neurons], counts of the rows whose gate was open
  uint64_t* read = nullptr;   // counts streamed bundles, once for each row tile that reads one
  PartialSums hot, streamed;  // without sums: not in this launch
  bool early = false;
};
void LaunchNeurons(const NeuronsArgs& args, int max_rows, cudaStream_t stream);

// Sums of the cpu side that are fetched as soon as they are there, beside this side's work; those
// of more rows by the blocks that add them.
inline constexpr int kFetchedFloats = 16384;
// Waits for the cpu side's result of the layer, if one is due, and adds it and the partial sums to
// x.
struct MergeArgs {
  StepPointers step;
  int32_t layer = 0;
  int32_t model_dim = 0;
  int32_t num_neurons = 0;
  // As written by LaunchNeurons for the same max_rows; without sums: x has this side's share, which
  // ends here.
  PartialSums hot, streamed;
  const float* bias = nullptr;  // [model_dim], added to every row; null: none
  float* cold = nullptr;        // [kFetchedFloats], scratch
  float* x = nullptr;
  bool early = false;
};
void LaunchMerge(const MergeArgs& args, int max_rows, cudaStream_t stream);

// Tells the cpu side, if it has part in the step, that no layer follows.
void LaunchPostEnd(const StepPointers& step, cudaStream_t stream);

// Samples the rows that do it here.
struct SampleArgs {
  StepPointers step;
  const float* logits = nullptr;  // [num_logits, vocabulary]
  int32_t vocabulary = 0;
};
void LaunchSample(const SampleArgs& args, int max_logits, cudaStream_t stream);

}  // namespace isotherm::gpu
