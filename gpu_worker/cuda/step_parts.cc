#include "gpu_worker/cuda/step_parts.h"

#include "common/base/checked_math.h"
#include "gpu_worker/kv_page.h"

namespace isotherm::gpu {

StepInputs StepInputs::Make(int64_t num_layers, int32_t max_rows, int32_t max_logits,
                            int32_t max_pages) {
  StepInputs out{.max_rows = max_rows, .max_pages = max_pages};
  const auto place = [&](int64_t bytes) {
    const int64_t at = out.bytes;
    out.bytes = RoundUp<int64_t>(at + bytes, 64);
    return at;
  };
  out.header = place(sizeof(StepHeader));
  out.layers = place(num_layers * static_cast<int64_t>(sizeof(LayerStep)));
  out.rows = place(max_rows * static_cast<int64_t>(sizeof(StepRow)));
  out.logit_rows = place(max_rows * int64_t{4});
  out.samples = place(max_logits * static_cast<int64_t>(sizeof(SampleRow)));
  out.pages = place(int64_t{max_rows} * max_pages * 4);
  return out;
}

StepPointers StepParts::Pointers() const {
  const unsigned char* const in = buffers.inputs;
  return {.header = reinterpret_cast<const StepHeader*>(in + inputs.header),
          .layers = reinterpret_cast<const LayerStep*>(in + inputs.layers),
          .rows = reinterpret_cast<const StepRow*>(in + inputs.rows),
          .logit_rows = reinterpret_cast<const int32_t*>(in + inputs.logit_rows),
          .samples = reinterpret_cast<const SampleRow*>(in + inputs.samples),
          .page_tables = reinterpret_cast<const int32_t*>(in + inputs.pages),
          .state = buffers.state,
          .times = buffers.times,
          .tokens = buffers.tokens,
          .traces = buffers.traces};
}

AttentionShape StepParts::Shape() const {
  return {.num_q_heads = static_cast<int32_t>(config->num_q_heads),
          .num_kv_heads = static_cast<int32_t>(config->num_kv_heads),
          .head_dim = static_cast<int32_t>(config->head_dim),
          .rope_half = static_cast<int32_t>(config->rope_dims / 2),
          .rope_neox = config->rope_neox,
          .bf16 = bf16()};
}

NormWeights StepParts::NormOf(const CudaWeights::Norm& norm) const {
  return {.kind = config->norm == NormKind::kLayer ? NormOp::kLayer : NormOp::kRms,
          .weight = norm.weight,
          .bias = norm.bias,
          .eps = config->norm_eps,
          .bf16 = bf16()};
}

DeviceBundles StepParts::Bundles() const {
  return {.dtype = layout->dtype,
          .rows = layout->rows,
          .model_dim = layout->model_dim,
          .row_bytes = layout->row_bytes,
          .bundle_bytes = layout->bundle_bytes};
}

KvPages StepParts::KvOf(int32_t layer) const {
  const int64_t elements = int64_t{kv_pages} * kPageSize * config->num_kv_heads * config->head_dim;
  return {.keys = kv + 2 * layer * elements, .values = kv + (2 * layer + 1) * elements};
}

void StepParts::Predict(int32_t l, bool posts, int32_t rows, cudaStream_t stream) const {
  const CudaWeights::Layer& layer = weights->layers[static_cast<size_t>(l)];
  const auto dim = static_cast<int32_t>(config->model_dim);
  LaunchPredict({.step = Pointers(),
                 .layer = l,
                 .x = buffers.x,
                 .model_dim = dim,
                 .norm = NormOf(layer.ffn_norm),
                 .fc1 = layer.fc1,
                 .hidden = buffers.hidden,
                 .hidden_stride = buffers.hidden_stride,
                 .z = buffers.z,
                 .begins_layer = config->parallel_attention,
                 .posts = posts},
                rows, stream);
  LaunchActivate({.step = Pointers(),
                  .layer = l,
                  .num_neurons = static_cast<int32_t>(config->ffn_dim),
                  .hidden = buffers.hidden,
                  .hidden_stride = buffers.hidden_stride,
                  .fc2 = layer.fc2,
                  .threshold = config->sparse_threshold,
                  .active = buffers.active,
                  .predicted = buffers.predicted + l * config->ffn_dim,
                  .z = buffers.z,
                  .model_dim = dim,
                  .posts = posts},
                 rows, stream);
}

void StepParts::Begin(int32_t rows, cudaStream_t stream) const {
  LaunchEmbed({.step = Pointers(),
               .dtype = weights->embedding.dtype,
               .embedding = weights->embedding.memory.as<const unsigned char>(),
               .embedding_row_bytes = weights->embedding.row_bytes,
               .positions_dtype = weights->positions.dtype,
               .positions = weights->positions.memory.as<const unsigned char>(),
               .positions_row_bytes = weights->positions.row_bytes,
               .position_offset = static_cast<int32_t>(config->position_offset),
               .model_dim = static_cast<int32_t>(config->model_dim),
               .x = buffers.x,
               .rope_frequencies = buffers.rope_frequencies,
               .rope_half = Shape().rope_half,
               .rope_cos = buffers.rope_cos,
               .rope_sin = buffers.rope_sin,
               .withdrawn = buffers.withdrawn},
              rows, stream);
}

void StepParts::End(int32_t logits, cudaStream_t stream) const {
  const StepPointers step = Pointers();
  LaunchPostEnd(step, stream);
  if (logits == 0) return;
  LaunchProduct({.in = {.x = buffers.x,
                        .stride = static_cast<int32_t>(config->model_dim),
                        .gather = step.logit_rows,
                        .num_rows = &step.header->num_logits,
                        .norm = NormOf(weights->output_norm)},
                 .w = weights->head,
                 .y = buffers.logits,
                 .y_stride = weights->head.rows,
                 .output = ProductOutput::kStore},
                logits, stream);
  LaunchSample({.step = step,
                .logits = buffers.logits,
                .vocabulary = static_cast<int32_t>(weights->head.rows)},
               logits, stream);
}

}  // namespace isotherm::gpu
