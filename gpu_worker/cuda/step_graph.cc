#include "gpu_worker/cuda/step_graph.h"

#include "common/base/status_macros.h"
#include "gpu_worker/cuda/cuda_error.h"

namespace isotherm::gpu {
namespace {

constexpr int32_t kCapturedRows[] = {1, 2, 4};

}  // namespace

StepGraph::StepGraph(const StepParts& parts, int32_t max_rows)
    : parts_(parts), max_rows_(max_rows) {}

StepGraph::~StepGraph() {
  for (const auto& [rows, graph] : graphs_) cudaGraphExecDestroy(graph);
  if (fork_ != nullptr) cudaEventDestroy(fork_);
  if (join_ != nullptr) cudaEventDestroy(join_);
  if (side_stream_ != nullptr) cudaStreamDestroy(side_stream_);
}

void StepGraph::Record(int32_t rows, int32_t logits, cudaStream_t stream) {
  const ModelConfig& config = *parts_.config;
  const StepBuffersCuda& b = parts_.buffers;
  const auto dim = static_cast<int32_t>(config.model_dim);
  const auto neurons = static_cast<int32_t>(config.ffn_dim);
  const StepPointers step = parts_.Pointers();
  const AttentionShape shape = parts_.Shape();
  const int64_t q_dim = config.num_q_heads * config.head_dim;

  parts_.Begin(rows, stream);
  for (int32_t l = 0; l < config.num_layers; ++l) {
    const CudaWeights::Layer& layer = parts_.weights->layers[static_cast<size_t>(l)];
    const KvPages kv = parts_.KvOf(l);
    const auto attend = [&] {
      LaunchQkv({.step = step,
                 .in = {.x = b.x, .stride = dim, .norm = parts_.NormOf(layer.attention_norm)},
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
                       .max_rows = max_rows_,
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
    parts_.Predict(l, /*posts=*/true, rows, stream);
    const NeuronsArgs all{.step = step,
                          .layer = l,
                          .num_neurons = neurons,
                          .bundles = parts_.Bundles(),
                          .activation = config.activation,
                          .activate_up = config.activate_up,
                          .up_bias = layer.up_bias,
                          .pool = parts_.pool,
                          .active = b.active,
                          .z = b.z,
                          .bf16 = parts_.bf16(),
                          .fired = b.fired + l * config.ffn_dim,
                          .read = b.read + l,
                          .hot = {b.hot_partial, b.hot_computed},
                          .streamed = {b.streamed_partial, b.streamed_computed},
                          .early = !config.parallel_attention};
    if (config.parallel_attention) {
      NeuronsArgs streamed = all, hot = all;
      streamed.hot = hot.streamed = {};
      cudaEventRecord(fork_, stream);
      cudaStreamWaitEvent(side_stream_, fork_, 0);
      LaunchNeurons(streamed, rows, side_stream_);
      cudaEventRecord(join_, side_stream_);
      attend();
      LaunchNeurons(hot, rows, stream);
      cudaStreamWaitEvent(stream, join_, 0);
    } else {
      LaunchNeurons(all, rows, stream);
    }
    LaunchMerge({.step = step,
                 .layer = l,
                 .model_dim = dim,
                 .num_neurons = neurons,
                 .hot = all.hot,
                 .streamed = all.streamed,
                 .bias = layer.down_bias,
                 .cold = b.cold_sums,
                 .x = b.x,
                 .early = !config.parallel_attention},
                rows, stream);
  }
  parts_.End(logits, stream);
}

absl::Status StepGraph::CaptureOne(int32_t rows, cudaStream_t stream) {
  cudaGraph_t graph = nullptr;
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  Record(rows, rows, stream);
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
  // No rows: the inputs are zero. Each row tile has kernels of its own.
  for (const int32_t rows : {1, 2, 3}) {
    if (rows > max_rows_) break;
    Record(rows, rows, stream);
    ISOTHERM_CUDA_RETURN_IF_ERROR(cudaGetLastError());
  }
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(stream));
  for (const int32_t rows : kCapturedRows) {
    if (rows <= max_rows_) ISOTHERM_RETURN_IF_ERROR(CaptureOne(rows, stream));
  }
  return CudaStatus(cudaStreamSynchronize(stream), "loading the graphs");
}

absl::Status StepGraph::Launch(int32_t rows, int32_t logits, cudaStream_t stream) {
  const auto graph = graphs_.lower_bound(rows);
  if (graph != graphs_.end())
    return CudaStatus(cudaGraphLaunch(graph->second, stream), "cudaGraphLaunch");
  Record(rows, logits, stream);
  return CudaStatus(cudaGetLastError(), "launching a step");
}

}  // namespace isotherm::gpu
