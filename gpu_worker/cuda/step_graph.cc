#include "gpu_worker/cuda/step_graph.h"

#include "common/base/checked_math.h"
#include "common/base/status_macros.h"
#include "gpu_worker/cuda/cuda_error.h"
#include "gpu_worker/kv_page.h"

namespace isotherm::gpu {
namespace {

constexpr int32_t kGraphRows[] = {1, 2, 4};

}  // namespace

AttentionShape AttentionShapeOf(const ModelConfig& config, bool bf16) {
  return {.num_q_heads = static_cast<int32_t>(config.num_q_heads),
          .num_kv_heads = static_cast<int32_t>(config.num_kv_heads),
          .head_dim = static_cast<int32_t>(config.head_dim),
          .rope_half = static_cast<int32_t>(config.rope_dims / 2),
          .rope_neox = config.rope_neox,
          .bf16 = bf16};
}

StepInputs StepInputs::Make(int64_t num_layers, int32_t max_rows, int32_t max_pages) {
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
  out.pages = place(int64_t{max_rows} * max_pages * 4);
  return out;
}

StepGraph::StepGraph(const Parts& parts) : parts_(parts) {}

StepGraph::~StepGraph() {
  for (const auto& [rows, graph] : graphs_) cudaGraphExecDestroy(graph);
  if (fork_ != nullptr) cudaEventDestroy(fork_);
  if (join_ != nullptr) cudaEventDestroy(join_);
  if (side_stream_ != nullptr) cudaStreamDestroy(side_stream_);
}

void StepGraph::Record(int32_t rows, int64_t page_tables, int32_t logits, cudaStream_t stream) {
  const ModelConfig& config = *parts_.config;
  const BundleLayout& layout = *parts_.layout;
  const CudaWeights& weights = *parts_.weights;
  const StepBuffersCuda& b = parts_.buffers;
  const StepInputs& in = parts_.inputs;
  const bool bf16 = layout.dtype == DType::kBF16;
  const auto dim = static_cast<int32_t>(config.model_dim);
  const auto neurons = static_cast<int32_t>(config.ffn_dim);
  const StepPointers step{.header = reinterpret_cast<const StepHeader*>(b.inputs + in.header),
                          .layers = reinterpret_cast<const LayerStep*>(b.inputs + in.layers),
                          .rows = reinterpret_cast<const StepRow*>(b.inputs + in.rows),
                          .logit_rows = reinterpret_cast<const int32_t*>(b.inputs + in.logit_rows),
                          .page_tables = reinterpret_cast<const int32_t*>(b.inputs + in.pages),
                          .state = b.state,
                          .times = b.times,
                          .traces = b.traces};
  const AttentionShape shape = AttentionShapeOf(config, bf16);
  const auto norm = [&](const CudaWeights::Norm& weights_of) {
    return NormWeights{.kind = config.norm == NormKind::kLayer ? NormOp::kLayer : NormOp::kRms,
                       .weight = weights_of.weight,
                       .bias = weights_of.bias,
                       .eps = config.norm_eps,
                       .bf16 = bf16};
  };
  const DeviceBundles bundles{.dtype = layout.dtype,
                              .rows = layout.rows,
                              .model_dim = layout.model_dim,
                              .row_bytes = layout.row_bytes,
                              .bundle_bytes = layout.bundle_bytes};
  const int64_t q_dim = config.num_q_heads * config.head_dim;

  cudaMemcpyAsync(const_cast<unsigned char*>(b.inputs), parts_.host_inputs,
                  static_cast<size_t>(in.BytesFor(page_tables)), cudaMemcpyHostToDevice, stream);
  LaunchEmbed({.step = step,
               .dtype = weights.embedding.dtype,
               .embedding = weights.embedding.memory.as<const unsigned char>(),
               .embedding_row_bytes = weights.embedding.row_bytes,
               .positions_dtype = weights.positions.dtype,
               .positions = weights.positions.memory.as<const unsigned char>(),
               .positions_row_bytes = weights.positions.row_bytes,
               .position_offset = static_cast<int32_t>(config.position_offset),
               .model_dim = dim,
               .x = b.x,
               .rope_frequencies = b.rope_frequencies,
               .rope_half = shape.rope_half,
               .rope_cos = b.rope_cos,
               .rope_sin = b.rope_sin},
              rows, stream);
  for (int32_t l = 0; l < config.num_layers; ++l) {
    const CudaWeights::Layer& layer = weights.layers[static_cast<size_t>(l)];
    const int64_t kv_elements =
        int64_t{parts_.kv_pages} * kPageSize * config.num_kv_heads * config.head_dim;
    const KvPages kv{.keys = parts_.kv + 2 * l * kv_elements,
                     .values = parts_.kv + (2 * l + 1) * kv_elements};
    const auto attend = [&] {
      LaunchQkv({.step = step,
                 .in = {.x = b.x, .stride = dim, .norm = norm(layer.attention_norm)},
                 .w = layer.qkv,
                 .shape = shape,
                 .bias = layer.qkv_bias,
                 .rope_cos = b.rope_cos,
                 .rope_sin = b.rope_sin,
                 .q = b.q,
                 .kv = kv,
                 .layer = l,
                 .begins_layer = !config.parallel_attention,
                 .early = !config.parallel_attention},
                rows, stream);
      LaunchAttention({.step = step,
                       .shape = shape,
                       .q = b.q,
                       .kv = kv,
                       .scratch = b.attention_scratch,
                       .max_rows = parts_.max_rows,
                       .out = b.attention,
                       .early = !config.parallel_attention},
                      rows, stream);
      LaunchProduct({.in = {.x = b.attention, .stride = q_dim, .num_rows = &step.header->num_rows},
                     .w = layer.o,
                     .bias = layer.o_bias,
                     .y = b.x,
                     .y_stride = dim,
                     .output = ProductOutput::kAdd,
                     .early = !config.parallel_attention},
                    rows, stream);
    };
    // With parallel attention everything of the neurons reads the layer's input, so the cpu side
    // starts first and attention runs beside it.
    if (!config.parallel_attention) attend();
    LaunchPredict({.step = step,
                   .layer = l,
                   .x = b.x,
                   .model_dim = dim,
                   .norm = norm(layer.ffn_norm),
                   .fc1 = layer.fc1,
                   .hidden = b.hidden,
                   .hidden_stride = b.hidden_stride,
                   .z = b.z,
                   .begins_layer = config.parallel_attention},
                  rows, stream);
    LaunchActivate({.step = step,
                    .layer = l,
                    .num_neurons = neurons,
                    .hidden = b.hidden,
                    .hidden_stride = b.hidden_stride,
                    .fc2 = layer.fc2,
                    .threshold = config.sparse_threshold,
                    .active = b.active,
                    .predicted = b.predicted + l * config.ffn_dim,
                    .z = b.z,
                    .model_dim = dim},
                   rows, stream);
    NeuronsArgs mine{.step = step,
                     .layer = l,
                     .num_neurons = neurons,
                     .bundles = bundles,
                     .activation = config.activation,
                     .activate_up = config.activate_up,
                     .up_bias = layer.up_bias,
                     .streamed = true,
                     .pool = parts_.pool,
                     .active = b.active,
                     .z = b.z,
                     .bf16 = bf16,
                     .fired = b.fired + l * config.ffn_dim,
                     .read = b.read + l,
                     .partial = b.streamed_partial,
                     .computed = b.streamed_computed};
    cudaEventRecord(fork_, stream);
    cudaStreamWaitEvent(side_stream_, fork_, 0);
    LaunchNeurons(mine, rows, side_stream_);
    cudaEventRecord(join_, side_stream_);
    if (config.parallel_attention) attend();
    mine.streamed = false;
    mine.partial = b.hot_partial;
    mine.computed = b.hot_computed;
    LaunchNeurons(mine, rows, stream);
    cudaStreamWaitEvent(stream, join_, 0);
    LaunchMerge({.step = step,
                 .layer = l,
                 .model_dim = dim,
                 .num_neurons = neurons,
                 .hot = b.hot_partial,
                 .streamed = b.streamed_partial,
                 .hot_computed = b.hot_computed,
                 .streamed_computed = b.streamed_computed,
                 .bias = layer.down_bias,
                 .x = b.x},
                rows, stream);
  }
  if (logits > 0) {
    LaunchProduct({.in = {.x = b.x,
                          .stride = dim,
                          .gather = step.logit_rows,
                          .num_rows = &step.header->num_logits,
                          .norm = norm(weights.output_norm)},
                   .w = weights.head,
                   .y = b.logits,
                   .y_stride = weights.head.rows,
                   .output = ProductOutput::kStore},
                  logits, stream);
    cudaMemcpyAsync(parts_.host_results + parts_.logits_offset, b.logits,
                    static_cast<size_t>(logits * weights.head.rows) * sizeof(float),
                    cudaMemcpyDeviceToHost, stream);
  }
  cudaMemcpyAsync(parts_.host_results, b.state, static_cast<size_t>(StateBytes(config.num_layers)),
                  cudaMemcpyDeviceToHost, stream);
}

absl::Status StepGraph::CaptureOne(int32_t rows, cudaStream_t stream) {
  cudaGraph_t graph = nullptr;
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  Record(rows, rows, rows, stream);
  const cudaError_t launched = cudaGetLastError();
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaStreamEndCapture(stream, &graph));
  ISOTHERM_CUDA_RETURN_IF_ERROR(launched);
  cudaGraphExec_t executable = nullptr;
  const cudaError_t made = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  ISOTHERM_CUDA_RETURN_IF_ERROR(made);
  graphs_[rows] = executable;
  return CudaStatus(cudaGraphUpload(executable, stream), "cudaGraphUpload");
}

absl::Status StepGraph::Capture(cudaStream_t stream) {
  int low = 0, high = 0;
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaDeviceGetStreamPriorityRange(&low, &high));
  ISOTHERM_CUDA_RETURN_IF_ERROR(
      cudaStreamCreateWithPriority(&side_stream_, cudaStreamNonBlocking, high));
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaEventCreateWithFlags(&fork_, cudaEventDisableTiming));
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaEventCreateWithFlags(&join_, cudaEventDisableTiming));
  // No rows: the header is zero. Each row tile has kernels of its own.
  for (const int32_t rows : {1, 2, 3}) {
    if (rows > parts_.max_rows) break;
    Record(rows, 0, rows, stream);
    ISOTHERM_CUDA_RETURN_IF_ERROR(cudaGetLastError());
  }
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(stream));
  for (const int32_t rows : kGraphRows) {
    if (rows <= parts_.max_rows) ISOTHERM_RETURN_IF_ERROR(CaptureOne(rows, stream));
  }
  return CudaStatus(cudaStreamSynchronize(stream), "loading the graphs");
}

absl::Status StepGraph::Launch(int32_t rows, int32_t logits, int64_t page_tables,
                               cudaStream_t stream) {
  const auto graph = graphs_.lower_bound(rows);
  if (graph != graphs_.end())
    return CudaStatus(cudaGraphLaunch(graph->second, stream), "cudaGraphLaunch");
  Record(rows, page_tables, logits, stream);
  return CudaStatus(cudaGetLastError(), "launching a step");
}

}  // namespace isotherm::gpu
