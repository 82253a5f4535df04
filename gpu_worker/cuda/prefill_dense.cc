// The part of a prefill pass before the neurons: attention, the predictor, and their products.
#include <algorithm>

#include "common/base/checked_math.h"
#include "common/base/status_macros.h"
#include "gpu_worker/cuda/prefill_pass.h"

namespace isotherm::gpu {
namespace {

constexpr int64_t kRowStep = 8;  // rows of a product's matrix, or cuBLAS takes a slow kernel

// Elements of a row of a product's input: cuBLAS is slow where rows do not begin on 16 bytes, so
// odd ones go with the matrix's padding, which is zero.
int64_t InputStride(const DeviceMatrix& w) {
  return w.columns % 8 == 0 ? w.columns : w.padded_columns;
}

}  // namespace

absl::Status PrefillPass::Product(const DeviceMatrix& w, int64_t first, int64_t last,
                                  const uint16_t* x, const uint16_t* low, bool exact_w, bool bf16,
                                  int64_t rows, float beta, float* y, int64_t y_stride,
                                  cudaStream_t stream) {
  const int64_t k = InputStride(w);
  const bool as_is = w.dtype == (bf16 ? DType::kBF16 : DType::kF16);
  uint16_t* const decoded = slices_[kBuffers];
  const int64_t at_once = as_is ? RoundUp(last - first, kRowStep)
                                : slice_elements_ / (exact_w ? 2 : 1) / k / kRowStep * kRowStep;
  for (int64_t at = first; at < last; at += at_once) {
    // Matrices have zeros behind their last row.
    const int64_t count =
        std::min({at_once, RoundUp(last - at, kRowStep), y_stride - (at - first)});
    float* const to = y + (at - first);
    const uint16_t* high = static_cast<const uint16_t*>(w.data) + at * w.padded_columns;
    const uint16_t* what_high_lacks = nullptr;
    int64_t stride = w.padded_columns;
    if (!as_is) {
      uint16_t* const decoded_low = exact_w ? decoded + at_once * k : nullptr;
      LaunchDecode16({.w = w,
                      .columns = k,
                      .first_row = at,
                      .num_rows = count,
                      .bf16 = bf16,
                      .out = decoded,
                      .low = decoded_low},
                     stream);
      high = decoded;
      what_high_lacks = decoded_low;
      stride = k;
    }
    ISOTHERM_RETURN_IF_ERROR(
        Gemm(bf16, count, rows, k, 1.0f, high, stride, x, k, beta, to, y_stride));
    if (what_high_lacks != nullptr) {
      ISOTHERM_RETURN_IF_ERROR(Gemm(bf16, count, rows, k, 1.0f / kLowScale, what_high_lacks, stride,
                                    x, k, 1.0f, to, y_stride));
    }
    if (low != nullptr) {
      ISOTHERM_RETURN_IF_ERROR(
          Gemm(bf16, count, rows, k, 1.0f / kLowScale, high, stride, low, k, 1.0f, to, y_stride));
    }
  }
  return absl::OkStatus();
}

absl::Status PrefillPass::Attend(const Step& step, int32_t l, cudaStream_t stream) {
  const ModelConfig& config = *parts_.config;
  const StepBuffersCuda& b = parts_.buffers;
  const CudaWeights::Layer& layer = parts_.weights->layers[static_cast<size_t>(l)];
  const bool bf16 = parts_.bf16();
  const auto dim = static_cast<int32_t>(config.model_dim);
  const int64_t q_dim = config.num_q_heads * config.head_dim;
  const AttentionShape shape = parts_.Shape();
  const KvPages kv = parts_.KvOf(l);
  for (int64_t first = 0; first < step.rows; first += tile_rows_) {
    const auto rows = static_cast<int32_t>(std::min<int64_t>(tile_rows_, step.rows - first));
    float* const x = b.x + first * dim;
    LaunchNormRows({.x = x,
                    .stride = dim,
                    .num_rows = rows,
                    .columns = dim,
                    .norm = parts_.NormOf(layer.attention_norm),
                    .out = h16_},
                   stream);
    ISOTHERM_RETURN_IF_ERROR(Product(layer.qkv, 0, layer.qkv.rows, h16_, nullptr,
                                     /*exact_w=*/false, bf16, rows, 0.0f, qkv_, layer.qkv.rows,
                                     stream));
    LaunchFinishQkv({.step = parts_.Pointers(),
                     .shape = shape,
                     .first_row = static_cast<int32_t>(first),
                     .num_rows = rows,
                     .qkv = qkv_,
                     .bias = layer.qkv_bias,
                     .rope_cos = b.rope_cos,
                     .rope_sin = b.rope_sin,
                     .q = q_,
                     .kv = kv},
                    stream);
    AttentionArgs attention{.step = parts_.Pointers(),
                            .shape = shape,
                            .first_row = static_cast<int32_t>(first),
                            .q = q_,
                            .kv = kv,
                            .splits = 1,
                            .out = attention_,
                            .early = !config.parallel_attention};
    if (step.rows <= limits_.graph_rows && step.page_tables * 4 > step.rows) {
      // Many sequences of few rows: there is nothing to share between rows.
      attention.splits = kAttentionSplits;
      attention.scratch = b.attention_scratch;
      attention.max_rows = limits_.graph_rows;
      LaunchAttention(attention, rows, stream);
    } else {
      LaunchPrefillAttention(attention, rows, stream);
    }
    LaunchSplitRows({.x = attention_,
                     .x_stride = q_dim,
                     .num_rows = rows,
                     .columns = static_cast<int32_t>(q_dim),
                     .out_stride = static_cast<int32_t>(q_dim),
                     .bf16 = bf16,
                     .high = h16_,
                     .low = low16_},
                    stream);
    // With parallel attention others still read x: see Launch.
    ISOTHERM_RETURN_IF_ERROR(Product(layer.o, 0, layer.o.rows, h16_, low16_, /*exact_w=*/false,
                                     bf16, rows, 1.0f, x, dim, stream));
    if (layer.o_bias != nullptr) LaunchAddBias(x, layer.o_bias, rows, dim, stream);
  }
  return absl::OkStatus();
}

// z, and the active sets, in products that are as good as F32: the sets must be those of decoding.
absl::Status PrefillPass::Predict(const Step& step, int32_t l, cudaStream_t stream) {
  const ModelConfig& config = *parts_.config;
  const StepBuffersCuda& b = parts_.buffers;
  const CudaWeights::Layer& layer = parts_.weights->layers[static_cast<size_t>(l)];
  const auto dim = static_cast<int32_t>(config.model_dim);
  const auto neurons = static_cast<int32_t>(config.ffn_dim);
  LaunchNormRows({.x = b.x,
                  .stride = dim,
                  .num_rows = step.rows,
                  .columns = dim,
                  .norm = parts_.NormOf(layer.ffn_norm),
                  .out = b.z},
                 stream);
  for (int64_t first = 0; first < step.rows; first += pass_rows_) {
    const auto rows = static_cast<int32_t>(std::min<int64_t>(pass_rows_, step.rows - first));
    ActivateRowsArgs activate{.step = parts_.Pointers(),
                              .layer = l,
                              .first_row = static_cast<int32_t>(first),
                              .num_rows = rows,
                              .num_neurons = neurons,
                              .count = neurons,
                              .threshold = config.sparse_threshold,
                              .active = b.active,
                              .predicted = b.predicted + l * config.ffn_dim};
    if (layer.fc1.rows == 0) {
      LaunchActivateRows(activate, stream);
      continue;
    }
    const int64_t rank = InputStride(layer.fc2);
    LaunchSplitRows({.x = b.x + first * dim,
                     .x_stride = dim,
                     .num_rows = rows,
                     .columns = dim,
                     .out_stride = dim,
                     .high = x_high_,
                     .low = x_low_},
                    stream);
    ISOTHERM_RETURN_IF_ERROR(Product(layer.fc1, 0, layer.fc1.rows, x_high_, x_low_,
                                     /*exact_w=*/true, false, rows, 0.0f, hidden_, rank, stream));
    LaunchSplitRows({.x = hidden_,
                     .x_stride = rank,
                     .num_rows = rows,
                     .columns = static_cast<int32_t>(layer.fc1.rows),
                     .out_stride = static_cast<int32_t>(rank),
                     .relu = true,
                     .high = hidden_high_,
                     .low = hidden_low_},
                    stream);
    // Some neurons at a time, so that their weights are decoded once for all rows; of few rows
    // more.
    const auto at_once = static_cast<int32_t>(
        std::min({RoundUp<int64_t>(neurons, 64), slice_elements_ / 2 / rank / 64 * 64,
                  pass_rows_ * score_neurons_ / rows / 64 * 64}));
    for (int32_t n = 0; n < neurons; n += at_once) {
      activate.first_neuron = n;
      activate.count = std::min(at_once, neurons - n);
      activate.scores = scores_;
      activate.stride = at_once;
      ISOTHERM_RETURN_IF_ERROR(Product(layer.fc2, n, n + activate.count, hidden_high_, hidden_low_,
                                       /*exact_w=*/true, false, rows, 0.0f, scores_, at_once,
                                       stream));
      LaunchActivateRows(activate, stream);
    }
  }
  return absl::OkStatus();
}

}  // namespace isotherm::gpu
