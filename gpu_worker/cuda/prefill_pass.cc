#include "gpu_worker/cuda/prefill_pass.h"

#include <algorithm>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/status_macros.h"
#include "gpu_worker/kv_page.h"

namespace isotherm::gpu {
namespace {

constexpr int64_t kTileRows = 512;
// 0.45 ms of PCIe: long against a launch, short against a layer.
constexpr int64_t kSliceBytes = int64_t{24} << 20;
// Neurons of a slice, so that every row of a product begins on 16 bytes.
constexpr int64_t kSliceStep = 64;
constexpr int64_t kCublasBytes = int64_t{32} << 20;  // what cuBLAS asks for on Hopper
constexpr int kGatherBlocks = 64;  // of 256 threads; 32 kept PCIe busy, the rest hides its latency
constexpr int kHotGatherBlocks = 528;
// Up to so many rows only neurons that one of them needs are gathered, for which the host waits for
// each layer's list; with more rows nearly every neuron is needed.
constexpr int32_t kSelectRows = 320;

absl::Status CublasStatus(cublasStatus_t status, absl::string_view what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, ": ", cublasGetStatusString(status)));
}

// Elements of a row of a product's input: cuBLAS is slow where rows do not begin on 16 bytes, so odd
// ones go with the matrix's padding, which is zero.
int64_t InputStride(const DeviceMatrix& w) {
  return w.columns % 8 == 0 ? w.columns : w.padded_columns;
}

#define ISOTHERM_CUBLAS_RETURN_IF_ERROR(expression) \
  ISOTHERM_RETURN_IF_ERROR(CublasStatus((expression), #expression))

}  // namespace

absl::StatusOr<std::unique_ptr<PrefillPass>> PrefillPass::Create(const Parts& parts,
                                                                 cudaStream_t stream) {
  std::unique_ptr<PrefillPass> pass(new PrefillPass(parts));
  ISOTHERM_RETURN_IF_ERROR(pass->Allocate());
  return pass;
}

PrefillPass::~PrefillPass() {
  if (copy_stream_ != nullptr) cudaStreamSynchronize(copy_stream_);
  if (cublas_ != nullptr) cublasDestroy(cublas_);
  for (const cudaEvent_t event : {ready_[0], ready_[1], free_[0], free_[1], listed_})
    if (event != nullptr) cudaEventDestroy(event);
  if (copy_stream_ != nullptr) cudaStreamDestroy(copy_stream_);
}

absl::Status PrefillPass::Allocate() {
  const ModelConfig& config = *parts_.config;
  const BundleLayout& layout = *parts_.layout;
  const int64_t q_dim = config.num_q_heads * config.head_dim;
  const int64_t qkv_dim = q_dim + 2 * config.num_kv_heads * config.head_dim;
  // Padded: products want rows that begin on 16 bytes.
  const int64_t rank = RoundUp<int64_t>(parts_.buffers.hidden_stride, 32);
  const int64_t bundle_elements = layout.rows * layout.model_dim;
  tile_rows_ = std::min<int64_t>(kTileRows, parts_.max_rows);
  slice_neurons_ = static_cast<int32_t>(
      std::max<int64_t>(kSliceStep, std::min(kSliceBytes / (2 * bundle_elements),
                                             RoundUp(layout.num_neurons, kSliceStep)) /
                                        kSliceStep * kSliceStep));
  // Decoded weights use a slice, too: at least some rows of the widest matrix.
  slice_elements_ = std::max<int64_t>(slice_neurons_ * bundle_elements,
                                      64 * std::max({config.model_dim, q_dim, rank}));
  const int64_t widest_in = std::max({config.model_dim, q_dim, rank});
  const int64_t widest_out = std::max({qkv_dim, config.ffn_dim, config.model_dim});
  int64_t bytes = 0;
  const auto carve = [&](std::byte* base) {
    bytes = 0;
    const auto take = [&](auto** to, int64_t count) {
      using T = std::remove_reference_t<decltype(**to)>;
      *to = reinterpret_cast<T*>(base == nullptr ? nullptr : base + bytes);
      bytes += RoundUp<int64_t>(count * static_cast<int64_t>(sizeof(T)), 256);
    };
    take(&h16_, tile_rows_ * widest_in);
    take(&low16_, tile_rows_ * widest_in);
    take(&wide_, tile_rows_ * widest_out);
    take(&q_, tile_rows_ * q_dim);
    take(&attention_, tile_rows_ * q_dim);
    take(&hidden_, tile_rows_ * std::max<int64_t>(rank, 1));
    take(&gate_, tile_rows_ * slice_neurons_);
    take(&up_, tile_rows_ * slice_neurons_);
    take(&values_, tile_rows_ * slice_neurons_);
    for (uint16_t*& slice : slices_) take(&slice, slice_elements_);
    take(&hot_ids_, config.ffn_dim);
    take(&hot_slots_, config.ffn_dim);
    for (int32_t*& ids : cold_ids_) take(&ids, config.ffn_dim);
  };
  carve(nullptr);
  ISOTHERM_ASSIGN_OR_RETURN(memory_, DeviceBytes::Make(bytes));
  carve(memory_.as<>());
  ISOTHERM_ASSIGN_OR_RETURN(workspace_, DeviceBytes::Make(kCublasBytes));
  ISOTHERM_ASSIGN_OR_RETURN(counts_, PinnedBytes::Make(64));
  int low = 0, high = 0;
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaDeviceGetStreamPriorityRange(&low, &high));
  ISOTHERM_CUDA_RETURN_IF_ERROR(
      cudaStreamCreateWithPriority(&copy_stream_, cudaStreamNonBlocking, high));
  for (cudaEvent_t* event : {&ready_[0], &ready_[1], &free_[0], &free_[1], &listed_})
    ISOTHERM_CUDA_RETURN_IF_ERROR(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
  ISOTHERM_CUBLAS_RETURN_IF_ERROR(cublasCreate(&cublas_));
  ISOTHERM_CUBLAS_RETURN_IF_ERROR(cublasSetMathMode(
      cublas_, cublasMath_t(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
  return absl::OkStatus();
}

StepPointers PrefillPass::Pointers() const {
  const unsigned char* const inputs = parts_.buffers.inputs;
  const StepInputs& in = parts_.inputs;
  return {.header = reinterpret_cast<const StepHeader*>(inputs + in.header),
          .layers = reinterpret_cast<const LayerStep*>(inputs + in.layers),
          .rows = reinterpret_cast<const StepRow*>(inputs + in.rows),
          .logit_rows = reinterpret_cast<const int32_t*>(inputs + in.logit_rows),
          .page_tables = reinterpret_cast<const int32_t*>(inputs + in.pages),
          .state = parts_.buffers.state,
          .traces = parts_.buffers.traces};
}

NormWeights PrefillPass::NormOf(const CudaWeights::Norm& norm) const {
  return {.kind = parts_.config->norm == NormKind::kLayer ? NormOp::kLayer : NormOp::kRms,
          .weight = norm.weight,
          .bias = norm.bias,
          .eps = parts_.config->norm_eps,
          .bf16 = parts_.layout->dtype == DType::kBF16};
}

// Row-major y[n, m] (+)= alpha * x[n, k] * w[m, k]^T, which to cuBLAS is the transpose, column-major.
absl::Status PrefillPass::Gemm(bool bf16, int64_t m, int64_t n, int64_t k, float alpha,
                               const uint16_t* w, int64_t w_stride, const uint16_t* x,
                               int64_t x_stride, float beta, float* y, int64_t y_stride) {
  const cudaDataType_t type = bf16 ? CUDA_R_16BF : CUDA_R_16F;
  return CublasStatus(
      cublasGemmEx(cublas_, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(m), static_cast<int>(n),
                   static_cast<int>(k), &alpha, w, type, static_cast<int>(w_stride), x, type,
                   static_cast<int>(x_stride), &beta, y, CUDA_R_32F, static_cast<int>(y_stride),
                   CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
      "cublasGemmEx");
}

absl::Status PrefillPass::Product(const DeviceMatrix& w, const uint16_t* x, const uint16_t* low,
                                  bool exact_w, bool bf16, int64_t rows, float beta, float* y,
                                  int64_t y_stride, cudaStream_t stream) {
  const int64_t k = InputStride(w);
  const bool as_is = w.dtype == (bf16 ? DType::kBF16 : DType::kF16);
  if (as_is) {
    const auto* const data = static_cast<const uint16_t*>(w.data);
    ISOTHERM_RETURN_IF_ERROR(
        Gemm(bf16, w.rows, rows, k, 1.0f, data, w.padded_columns, x, k, beta, y, y_stride));
    if (low == nullptr) return absl::OkStatus();
    return Gemm(bf16, w.rows, rows, k, 1.0f / kLowScale, data, w.padded_columns, low, k, 1.0f, y,
                y_stride);
  }
  uint16_t* const decoded = slices_[kBuffers];
  const int64_t at_once = slice_elements_ / (exact_w ? 2 : 1) / k;
  for (int64_t first = 0; first < w.rows; first += at_once) {
    const int64_t count = std::min(at_once, w.rows - first);
    uint16_t* const decoded_low = exact_w ? decoded + at_once * k : nullptr;
    LaunchDecode16({.w = w,
                    .columns = k,
                    .first_row = first,
                    .num_rows = count,
                    .bf16 = bf16,
                    .out = decoded,
                    .low = decoded_low},
                   stream);
    ISOTHERM_RETURN_IF_ERROR(
        Gemm(bf16, count, rows, k, 1.0f, decoded, k, x, k, beta, y + first, y_stride));
    if (exact_w) {
      ISOTHERM_RETURN_IF_ERROR(Gemm(bf16, count, rows, k, 1.0f / kLowScale, decoded_low, k, x, k,
                                    1.0f, y + first, y_stride));
    }
    if (low != nullptr) {
      ISOTHERM_RETURN_IF_ERROR(Gemm(bf16, count, rows, k, 1.0f / kLowScale, decoded, k, low, k, 1.0f,
                                    y + first, y_stride));
    }
  }
  return absl::OkStatus();
}

absl::Status PrefillPass::Attend(const Step& step, int32_t l, cudaStream_t stream) {
  const ModelConfig& config = *parts_.config;
  const StepBuffersCuda& b = parts_.buffers;
  const CudaWeights::Layer& layer = parts_.weights->layers[static_cast<size_t>(l)];
  const bool bf16 = parts_.layout->dtype == DType::kBF16;
  const auto dim = static_cast<int32_t>(config.model_dim);
  const int64_t q_dim = config.num_q_heads * config.head_dim;
  const AttentionShape shape = AttentionShapeOf(config, bf16);
  const int64_t kv_elements =
      int64_t{parts_.kv_pages} * kPageSize * config.num_kv_heads * config.head_dim;
  const KvPages kv{.keys = parts_.kv + 2 * l * kv_elements,
                   .values = parts_.kv + (2 * l + 1) * kv_elements};
  for (int64_t first = 0; first < step.rows; first += tile_rows_) {
    const auto rows = static_cast<int32_t>(std::min<int64_t>(tile_rows_, step.rows - first));
    float* const x = b.x + first * dim;
    LaunchNormRows({.x = x,
                    .stride = dim,
                    .num_rows = rows,
                    .columns = dim,
                    .norm = NormOf(layer.attention_norm),
                    .out = h16_},
                   stream);
    ISOTHERM_RETURN_IF_ERROR(Product(layer.qkv, h16_, nullptr, /*exact_w=*/false, bf16, rows, 0.0f,
                                     wide_, layer.qkv.rows, stream));
    LaunchFinishQkv({.step = Pointers(),
                     .shape = shape,
                     .first_row = static_cast<int32_t>(first),
                     .num_rows = rows,
                     .qkv = wide_,
                     .bias = layer.qkv_bias,
                     .rope_cos = b.rope_cos,
                     .rope_sin = b.rope_sin,
                     .q = q_,
                     .kv = kv},
                    stream);
    LaunchPrefillAttention({.step = Pointers(),
                            .shape = shape,
                            .first_row = static_cast<int32_t>(first),
                            .q = q_,
                            .kv = kv,
                            .splits = 1,
                            .out = attention_},
                           rows, stream);
    LaunchSplitRows({.x = attention_,
                     .count = rows * q_dim,
                     .bf16 = bf16,
                     .high = h16_,
                     .low = low16_},
                    stream);
    // With parallel attention others still read x: see Launch.
    ISOTHERM_RETURN_IF_ERROR(Product(layer.o, h16_, low16_, /*exact_w=*/false, bf16, rows, 1.0f, x,
                                     dim, stream));
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
  LaunchNormRows({.x = b.x,
                  .stride = dim,
                  .num_rows = step.rows,
                  .columns = dim,
                  .norm = NormOf(layer.ffn_norm),
                  .out = b.z},
                 stream);
  for (int64_t first = 0; first < step.rows; first += tile_rows_) {
    const auto rows = static_cast<int32_t>(std::min<int64_t>(tile_rows_, step.rows - first));
    const float* scores = nullptr;
    if (layer.fc1.rows > 0) {
      const int64_t rank = InputStride(layer.fc2);  // behind fc1.rows it stays zero
      LaunchSplitRows({.x = b.x + first * dim,
                       .count = int64_t{rows} * dim,
                       .bf16 = false,
                       .high = h16_,
                       .low = low16_},
                      stream);
      ISOTHERM_RETURN_IF_ERROR(Product(layer.fc1, h16_, low16_, /*exact_w=*/true, false, rows, 0.0f,
                                       hidden_, rank, stream));
      LaunchRelu(hidden_, rows * rank, stream);
      LaunchSplitRows(
          {.x = hidden_, .count = rows * rank, .bf16 = false, .high = h16_, .low = low16_}, stream);
      ISOTHERM_RETURN_IF_ERROR(Product(layer.fc2, h16_, low16_, /*exact_w=*/true, false, rows, 0.0f,
                                       wide_, config.ffn_dim, stream));
      scores = wide_;
    }
    LaunchActivateRows({.step = Pointers(),
                        .layer = l,
                        .first_row = static_cast<int32_t>(first),
                        .num_rows = rows,
                        .num_neurons = static_cast<int32_t>(config.ffn_dim),
                        .scores = scores,
                        .threshold = config.sparse_threshold,
                        .active = b.active,
                        .predicted = b.predicted + l * config.ffn_dim},
                       stream);
  }
  return absl::OkStatus();
}

void PrefillPass::AddSlices(int32_t layer, int32_t cold) {
  for (int32_t first = 0; first < cold; first += slice_neurons_)
    plan_.push_back({.layer = layer, .first = first, .count = std::min(slice_neurons_, cold - first)});
}

void PrefillPass::GatherAhead(size_t slices) {
  const BundleLayout& layout = *parts_.layout;
  for (; gathered_ < std::min(slices, plan_.size()); ++gathered_) {
    const Slice& slice = plan_[gathered_];
    const size_t buffer = gathered_ % kBuffers;
    cudaStreamWaitEvent(copy_stream_, free_[buffer], 0);
    LaunchGatherBundles({.step = Pointers(),
                         .layer = slice.layer,
                         .bundles = {.dtype = layout.dtype,
                                     .rows = layout.rows,
                                     .model_dim = layout.model_dim,
                                     .row_bytes = layout.row_bytes,
                                     .bundle_bytes = layout.bundle_bytes},
                         .bf16 = layout.dtype == DType::kBF16,
                         .streamed = true,
                         .list = cold_ids_[slice.layer % 2] + slice.first,
                         .count = slice.count,
                         .blocks = kGatherBlocks,
                         .out = slices_[buffer]},
                        copy_stream_);
    cudaEventRecord(ready_[buffer], copy_stream_);
  }
}

absl::Status PrefillPass::MultiplySlice(const Step& step, int32_t l, const uint16_t* bundles,
                                        const int32_t* ids, int32_t count, cudaStream_t stream) {
  const ModelConfig& config = *parts_.config;
  const StepBuffersCuda& b = parts_.buffers;
  const int64_t dim = config.model_dim;
  const int rows_of_bundle = parts_.layout->rows;
  const int64_t stride = rows_of_bundle * dim;
  const bool bf16 = parts_.layout->dtype == DType::kBF16;
  const cudaDataType_t type = bf16 ? CUDA_R_16BF : CUDA_R_16F;
  for (int64_t first = 0; first < step.rows; first += tile_rows_) {
    const auto rows = static_cast<int32_t>(std::min<int64_t>(tile_rows_, step.rows - first));
    const uint16_t* const z = b.z + first * dim;
    ISOTHERM_RETURN_IF_ERROR(Gemm(bf16, count, rows, dim, 1.0f, bundles, stride, z, dim, 0.0f, gate_,
                                  slice_neurons_));
    if (rows_of_bundle == 3) {
      ISOTHERM_RETURN_IF_ERROR(Gemm(bf16, count, rows, dim, 1.0f, bundles + dim, stride, z, dim,
                                    0.0f, up_, slice_neurons_));
    }
    LaunchNeuronValues({.step = Pointers(),
                        .layer = l,
                        .first_row = static_cast<int32_t>(first),
                        .num_rows = rows,
                        .num_neurons = static_cast<int32_t>(config.ffn_dim),
                        .ids = ids,
                        .count = count,
                        .stride = slice_neurons_,
                        .gate = gate_,
                        .up = rows_of_bundle == 3 ? up_ : nullptr,
                        .activation = config.activation,
                        .activate_up = config.activate_up,
                        .up_bias = parts_.weights->layers[static_cast<size_t>(l)].up_bias,
                        .active = b.active,
                        .bf16 = bf16,
                        .fired = b.fired + l * config.ffn_dim,
                        .values = values_},
                       stream);
    // x[rows, dim] += values[rows, count] * down[count, dim]
    const float one = 1.0f;
    ISOTHERM_CUBLAS_RETURN_IF_ERROR(cublasGemmEx(
        cublas_, CUBLAS_OP_N, CUBLAS_OP_N, static_cast<int>(dim), rows, count, &one,
        bundles + (rows_of_bundle - 1) * dim, type, static_cast<int>(stride), values_, type,
        slice_neurons_, &one, b.x + first * dim, CUDA_R_32F, static_cast<int>(dim), CUBLAS_COMPUTE_32F,
        CUBLAS_GEMM_DEFAULT));
  }
  return absl::OkStatus();
}

// The layer's lists, and its cold slices to the plan.
absl::Status PrefillPass::List(const Step& step, int32_t l, cudaStream_t stream) {
  const bool select = step.rows <= kSelectRows;
  LaunchListNeurons({.step = Pointers(),
                     .layer = l,
                     .num_rows = step.rows,
                     .num_neurons = static_cast<int32_t>(parts_.layout->num_neurons),
                     .only_active = select,
                     .active = parts_.buffers.active,
                     .hot_ids = hot_ids_,
                     .hot_slots = hot_slots_,
                     .cold_ids = cold_ids_[l % 2],
                     .counts = counts_.as<int32_t>()},
                    stream);
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaEventRecord(listed_, stream));
  if (select) {
    ISOTHERM_CUDA_RETURN_IF_ERROR(cudaEventSynchronize(listed_));
    num_hot_ = counts_.as<const int32_t>()[0];
    AddSlices(l, counts_.as<const int32_t>()[1]);
  } else {
    ISOTHERM_CUDA_RETURN_IF_ERROR(cudaStreamWaitEvent(copy_stream_, listed_, 0));
    num_hot_ = step.counts[static_cast<size_t>(l)].first;
    AddSlices(l, step.counts[static_cast<size_t>(l)].second);
  }
  GatherAhead(used_ + kBuffers);
  return absl::OkStatus();
}

absl::Status PrefillPass::Neurons(const Step& step, int32_t l, cudaStream_t stream) {
  const BundleLayout& layout = *parts_.layout;
  const int32_t hot = num_hot_;
  for (int32_t first = 0; first < hot; first += slice_neurons_) {
    const int32_t count = std::min(slice_neurons_, hot - first);
    LaunchGatherBundles({.step = Pointers(),
                         .layer = l,
                         .bundles = {.dtype = layout.dtype,
                                     .rows = layout.rows,
                                     .model_dim = layout.model_dim,
                                     .row_bytes = layout.row_bytes,
                                     .bundle_bytes = layout.bundle_bytes},
                         .bf16 = layout.dtype == DType::kBF16,
                         .pool = parts_.pool,
                         .list = hot_slots_ + first,
                         .count = count,
                         .blocks = kHotGatherBlocks,
                         .out = slices_[kBuffers]},
                        stream);
    ISOTHERM_RETURN_IF_ERROR(
        MultiplySlice(step, l, slices_[kBuffers], hot_ids_ + first, count, stream));
  }
  for (; used_ < plan_.size(); ++used_) {
    const Slice& slice = plan_[used_];
    const size_t buffer = used_ % kBuffers;
    ISOTHERM_CUDA_RETURN_IF_ERROR(cudaStreamWaitEvent(stream, ready_[buffer], 0));
    ISOTHERM_RETURN_IF_ERROR(MultiplySlice(step, l, slices_[buffer],
                                           cold_ids_[l % 2] + slice.first, slice.count, stream));
    ISOTHERM_CUDA_RETURN_IF_ERROR(cudaEventRecord(free_[buffer], stream));
    GatherAhead(used_ + 1 + kBuffers);
  }
  return absl::OkStatus();
}

absl::Status PrefillPass::Launch(const Step& step, cudaStream_t stream) {
  const ModelConfig& config = *parts_.config;
  const StepBuffersCuda& b = parts_.buffers;
  const CudaWeights& weights = *parts_.weights;
  const auto dim = static_cast<int32_t>(config.model_dim);
  ISOTHERM_CUBLAS_RETURN_IF_ERROR(cublasSetStream(cublas_, stream));
  ISOTHERM_CUBLAS_RETURN_IF_ERROR(
      cublasSetWorkspace(cublas_, workspace_.as<void>(), static_cast<size_t>(workspace_.bytes())));
  plan_.clear();
  gathered_ = used_ = 0;
  cudaMemcpyAsync(const_cast<unsigned char*>(b.inputs), parts_.host_inputs,
                  static_cast<size_t>(parts_.inputs.BytesFor(step.page_tables)),
                  cudaMemcpyHostToDevice, stream);
  LaunchEmbed({.step = Pointers(),
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
               .rope_half = static_cast<int32_t>(config.rope_dims / 2),
               .rope_cos = b.rope_cos,
               .rope_sin = b.rope_sin},
              step.rows, stream);
  // What is listed without looking at the rows is listed a layer ahead, so that PCIe never waits for
  // attention.
  const bool ahead = step.rows > kSelectRows;
  if (ahead) ISOTHERM_RETURN_IF_ERROR(List(step, 0, stream));
  for (int32_t l = 0; l < config.num_layers; ++l) {
    const CudaWeights::Layer& layer = weights.layers[static_cast<size_t>(l)];
    if (config.parallel_attention) {
      // z and the active sets are of the layer's input, which attention then adds to.
      ISOTHERM_RETURN_IF_ERROR(Predict(step, l, stream));
      ISOTHERM_RETURN_IF_ERROR(Attend(step, l, stream));
    } else {
      ISOTHERM_RETURN_IF_ERROR(Attend(step, l, stream));
      ISOTHERM_RETURN_IF_ERROR(Predict(step, l, stream));
    }
    if (!ahead) ISOTHERM_RETURN_IF_ERROR(List(step, l, stream));
    ISOTHERM_RETURN_IF_ERROR(Neurons(step, l, stream));
    if (ahead && l + 1 < config.num_layers) ISOTHERM_RETURN_IF_ERROR(List(step, l + 1, stream));
    if (layer.down_bias != nullptr) LaunchAddBias(b.x, layer.down_bias, step.rows, dim, stream);
  }
  if (step.logits > 0) {
    LaunchProduct({.in = {.x = b.x,
                          .stride = dim,
                          .gather = Pointers().logit_rows,
                          .num_rows = &Pointers().header->num_logits,
                          .norm = NormOf(weights.output_norm)},
                   .w = weights.head,
                   .y = b.logits,
                   .y_stride = weights.head.rows,
                   .output = ProductOutput::kStore},
                  step.logits, stream);
    cudaMemcpyAsync(parts_.host_results + parts_.logits_offset, b.logits,
                    static_cast<size_t>(step.logits * weights.head.rows) * sizeof(float),
                    cudaMemcpyDeviceToHost, stream);
  }
  cudaMemcpyAsync(parts_.host_results, b.state, sizeof(StepState), cudaMemcpyDeviceToHost, stream);
  return CudaStatus(cudaGetLastError(), "launching a prefill step");
}

}  // namespace isotherm::gpu
