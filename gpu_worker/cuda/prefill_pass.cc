#include "gpu_worker/cuda/prefill_pass.h"

#include <algorithm>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/status_macros.h"

namespace isotherm::gpu {
namespace {

constexpr int64_t kTileRows = 512;   // of attention, whose products are wide enough for them
constexpr int64_t kPassRows = 2048;  // a slice's products need as many to fill the device
constexpr int64_t kScoreBytes = int64_t{32} << 20;
// 0.45 ms of PCIe: long against a launch, short against a layer.
constexpr int64_t kSliceBytes = int64_t{24} << 20;
// Neurons of a slice, so that every row of a product begins on 16 bytes.
constexpr int64_t kSliceStep = 64;
constexpr int64_t kCublasBytes = int64_t{32} << 20;  // what cuBLAS asks for on Hopper
// Of 256 threads, each with 128 bytes under way. 32 keep PCIe busy, the rest hides its latency.
constexpr int kGatherBlocks = 64;
// Beside the cpu side fewer: what lies ahead in PCIe's queue delays its answers, and the cores' own
// reads. 73 tokens of a 7B at 8 GiB: 845 and 902 tokens/s with 64, 877 with 32, 939 and 935 with
// 16, 903 with 8.
constexpr int kSharedGatherBlocks = 16;
constexpr int kHotGatherBlocks = 528;
// Up to so many rows of the device slices are small, and of a step products with the predictor's
// 8-bit weights as they are beat products with decoded ones.
constexpr int32_t kFewRows = 64;
constexpr int32_t kFewPredictedRows = 32;
// Up to so many rows only neurons that one of them needs are gathered, for which the host waits for
// each layer's list; with more rows nearly every neuron is needed.
constexpr int32_t kSelectRows = 320;
static_assert(kSelectRows >= PrefillPass::kMostSharedRows);
// Share of a layer's neurons that are cold from which on all of it is copied.
constexpr double kWholeShare = 0.75;

absl::Status CublasStatus(cublasStatus_t status, absl::string_view what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, ": ", cublasGetStatusString(status)));
}

#define ISOTHERM_CUBLAS_RETURN_IF_ERROR(expression) \
  ISOTHERM_RETURN_IF_ERROR(CublasStatus((expression), #expression))

}  // namespace

absl::StatusOr<std::unique_ptr<PrefillPass>> PrefillPass::Create(const StepParts& parts,
                                                                 const Limits& limits,
                                                                 cudaStream_t stream) {
  std::unique_ptr<PrefillPass> pass(new PrefillPass(parts, limits));
  ISOTHERM_RETURN_IF_ERROR(pass->Allocate());
  return pass;
}

PrefillPass::~PrefillPass() {
  if (copy_stream_ != nullptr) cudaStreamSynchronize(copy_stream_);
  if (cublas_ != nullptr) cublasDestroy(cublas_);
  for (const cudaEvent_t event : {ready_[0], ready_[1], free_[0], free_[1], listed_, top_listed_})
    if (event != nullptr) cudaEventDestroy(event);
  if (copy_stream_ != nullptr) cudaStreamDestroy(copy_stream_);
}

absl::Status PrefillPass::Allocate() {
  const ModelConfig& config = *parts_.config;
  const BundleLayout& layout = *parts_.layout;
  const int64_t q_dim = config.num_q_heads * config.head_dim;
  const int64_t qkv_dim = q_dim + 2 * config.num_kv_heads * config.head_dim;
  // Padded: products want rows that begin on 16 bytes.
  const int64_t rank = RoundUp<int64_t>(parts_.buffers.hidden_stride, 32);  // 0: no predictor
  const int64_t bundle_elements =
      std::max<int64_t>(layout.rows * layout.model_dim, layout.bundle_bytes / 2);
  tile_rows_ = std::min<int64_t>(kTileRows, limits_.max_rows);
  pass_rows_ = std::min<int64_t>(kPassRows, limits_.max_rows);
  // Few rows never fetch more than they need, in slices that are soon there.
  const int64_t slice_bytes = limits_.max_rows <= kFewRows ? kSliceBytes / 3 : kSliceBytes;
  slice_neurons_ = static_cast<int32_t>(std::max<int64_t>(
      kSliceStep,
      std::min(slice_bytes / (2 * bundle_elements), RoundUp(layout.num_neurons, kSliceStep)) /
          kSliceStep * kSliceStep));
  const int64_t widest_in = std::max(config.model_dim, q_dim);
  // Decoded weights use a slice, too: at least some rows of the widest matrix.
  slice_elements_ =
      std::max<int64_t>(slice_neurons_ * bundle_elements, 128 * std::max(widest_in, rank));
  score_neurons_ = RoundUp<int64_t>(layout.num_neurons, 64);
  if (rank > 0) score_neurons_ = std::min(score_neurons_, slice_elements_ / 2 / rank / 64 * 64);
  score_neurons_ =
      std::min(score_neurons_, std::max<int64_t>(64, kScoreBytes / 4 / pass_rows_ / 64 * 64));
  int64_t bytes = 0;
  const auto carve = [&](std::byte* base) {
    bytes = 0;
    const auto take = [&](auto** to, int64_t count) {
      using T = std::remove_reference_t<decltype(**to)>;
      *to = reinterpret_cast<T*>(base == nullptr ? nullptr : base + bytes);
      bytes += RoundUp<int64_t>(count * static_cast<int64_t>(sizeof(T)), 256);
    };
    int64_t most = 0;
    const auto over_each_other = [&](int64_t from) {
      most = std::max(most, bytes);
      bytes = from;
    };
    take(&h16_, tile_rows_ * widest_in);
    take(&low16_, tile_rows_ * widest_in);
    take(&qkv_, tile_rows_ * qkv_dim);
    take(&q_, tile_rows_ * q_dim);
    take(&attention_, tile_rows_ * q_dim);
    over_each_other(0);
    if (rank > 0) {
      take(&hidden_, pass_rows_ * rank);
      const int64_t behind_hidden = bytes;
      take(&x_high_, pass_rows_ * config.model_dim);
      take(&x_low_, pass_rows_ * config.model_dim);
      over_each_other(behind_hidden);
      take(&hidden_high_, pass_rows_ * rank);
      take(&hidden_low_, pass_rows_ * rank);
      take(&scores_, pass_rows_ * score_neurons_);
      over_each_other(0);
    }
    take(&gate_, pass_rows_ * slice_neurons_);
    if (layout.rows == 3) take(&up_, pass_rows_ * slice_neurons_);
    take(&values_, pass_rows_ * slice_neurons_);
    over_each_other(0);
    bytes = most;
    for (uint16_t*& slice : slices_) take(&slice, slice_elements_);
    for (int32_t*& ids : hot_ids_) take(&ids, config.ffn_dim);
    for (int32_t*& slots : hot_slots_) take(&slots, config.ffn_dim);
    for (int32_t*& ids : cold_ids_) take(&ids, config.ffn_dim);
    for (int32_t*& ids : top_ids_) take(&ids, slice_neurons_);
    take(&to_cpu_, CeilDiv<int64_t>(config.ffn_dim, 64));
  };
  carve(nullptr);
  ISOTHERM_ASSIGN_OR_RETURN(memory_, DeviceBytes::Make(bytes, "the workspace of prompts"));
  carve(memory_.as<>());
  ISOTHERM_ASSIGN_OR_RETURN(workspace_,
                            DeviceBytes::Make(kCublasBytes, "the workspace of prompts"));
  ISOTHERM_ASSIGN_OR_RETURN(counts_, PinnedBytes::Make(64));
  int low = 0, high = 0;
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaDeviceGetStreamPriorityRange(&low, &high));
  ISOTHERM_CUDA_RETURN_IF_ERROR(
      cudaStreamCreateWithPriority(&copy_stream_, cudaStreamNonBlocking, high));
  for (cudaEvent_t* event : {&ready_[0], &ready_[1], &free_[0], &free_[1], &listed_, &top_listed_})
    ISOTHERM_CUDA_RETURN_IF_ERROR(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
  ISOTHERM_CUBLAS_RETURN_IF_ERROR(cublasCreate(&cublas_));
  ISOTHERM_CUBLAS_RETURN_IF_ERROR(cublasSetMathMode(
      cublas_,
      cublasMath_t(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
  return absl::OkStatus();
}

// Row-major y[n, m] (+)= alpha * x[n, k] * w[m, k]^T, which to cuBLAS is the transpose,
// column-major.
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

void PrefillPass::AddSlices(int32_t layer, int32_t neurons, From from) {
  for (int32_t first = 0; first < neurons; first += slice_neurons_) {
    plan_.push_back({.layer = layer,
                     .first = first,
                     .count = std::min(slice_neurons_, neurons - first),
                     .from = from});
  }
}

int32_t PrefillPass::Read(int32_t layer) const {
  int32_t read = 0;
  for (const Slice& slice : plan_) read += slice.layer == layer ? slice.count : 0;
  return read;
}

bool PrefillPass::Whole(const Step& step, int32_t l) const {
  const Layer& layer = step.layers[static_cast<size_t>(l)];
  return step.rows > kSelectRows && layer.arena != nullptr &&
         (parts_.layout->dtype == DType::kF16 || parts_.bf16()) &&
         layer.cold >= kWholeShare * static_cast<double>(layer.hot + layer.cold);
}

absl::Status PrefillPass::FetchAhead(const Step& step, size_t slices) {
  const BundleLayout& layout = *parts_.layout;
  for (; fetched_ < std::min(slices, plan_.size()); ++fetched_) {
    const Slice& slice = plan_[fetched_];
    const size_t buffer = fetched_ % kBuffers;
    ISOTHERM_CUDA_RETURN_IF_ERROR(cudaStreamWaitEvent(copy_stream_, free_[buffer], 0));
    if (slice.from == From::kIds) {
      const std::byte* const from =
          step.layers[static_cast<size_t>(slice.layer)].arena + slice.first * layout.bundle_bytes;
      ISOTHERM_CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(
          slices_[buffer], from, static_cast<size_t>(slice.count * layout.bundle_bytes),
          cudaMemcpyHostToDevice, copy_stream_));
    } else {
      LaunchGatherBundles({.step = parts_.Pointers(),
                           .layer = slice.layer,
                           .bundles = parts_.Bundles(),
                           .bf16 = layout.dtype == DType::kBF16,
                           .streamed = true,
                           .list = ListOf(slice),
                           .count = slice.count,
                           .blocks = step.shared ? kSharedGatherBlocks : kGatherBlocks,
                           .out = slices_[buffer]},
                          copy_stream_);
    }
    ISOTHERM_CUDA_RETURN_IF_ERROR(cudaEventRecord(ready_[buffer], copy_stream_));
  }
  return absl::OkStatus();
}

absl::Status PrefillPass::Multiply(const Step& step, int32_t l, const Weights& weights,
                                   const Ids& ids, cudaStream_t stream) {
  const ModelConfig& config = *parts_.config;
  const StepBuffersCuda& b = parts_.buffers;
  const int64_t dim = config.model_dim;
  const bool gated = parts_.layout->rows == 3;
  const bool bf16 = parts_.bf16();
  const cudaDataType_t type = bf16 ? CUDA_R_16BF : CUDA_R_16F;
  const int count = PaddedCount(ids.count);
  const float one = 1.0f, zero = 0.0f;
  for (int64_t first = 0; first < step.rows; first += pass_rows_) {
    const auto rows = static_cast<int32_t>(std::min<int64_t>(pass_rows_, step.rows - first));
    const uint16_t* const z = b.z + first * dim;
    // Gates and ups are two products of one shape.
    ISOTHERM_CUBLAS_RETURN_IF_ERROR(cublasGemmStridedBatchedEx(
        cublas_, CUBLAS_OP_T, CUBLAS_OP_N, count, rows, static_cast<int>(dim), &one, weights.data,
        type, static_cast<int>(weights.stride), weights.row, z, type, static_cast<int>(dim), 0,
        &zero, gate_, CUDA_R_32F, slice_neurons_, gated ? up_ - gate_ : 0, gated ? 2 : 1,
        CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    LaunchNeuronValues({.step = parts_.Pointers(),
                        .layer = l,
                        .first_row = static_cast<int32_t>(first),
                        .num_rows = rows,
                        .num_neurons = static_cast<int32_t>(config.ffn_dim),
                        .ids = ids.list,
                        .first_id = ids.first_id,
                        .count = ids.count,
                        .stride = slice_neurons_,
                        .gate = gate_,
                        .up = gated ? up_ : nullptr,
                        .activation = config.activation,
                        .activate_up = config.activate_up,
                        .up_bias = parts_.weights->layers[static_cast<size_t>(l)].up_bias,
                        .active = b.active,
                        .bf16 = bf16,
                        .fired = b.fired + l * config.ffn_dim,
                        .read = ids.over_pcie && first == 0 ? b.read + l : nullptr,
                        .values = values_},
                       stream);
    // x[rows, dim] += values[rows, count] * down[count, dim]
    ISOTHERM_CUBLAS_RETURN_IF_ERROR(cublasGemmEx(
        cublas_, CUBLAS_OP_N, CUBLAS_OP_N, static_cast<int>(dim), rows, count, &one,
        weights.data + (gated ? 2 : 1) * weights.row, type, static_cast<int>(weights.stride),
        values_, type, slice_neurons_, &one, b.x + first * dim, CUDA_R_32F, static_cast<int>(dim),
        CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
  }
  return absl::OkStatus();
}

// Ids from here on are fetched early, if that is done.
int32_t PrefillPass::LastListed(const Step& step, int32_t l) const {
  const Layer& layer = step.layers[static_cast<size_t>(l)];
  return step.rows <= kSelectRows && layer.num_top > 0 ? layer.top : layer.hot + layer.cold;
}

absl::Status PrefillPass::List(const Step& step, int32_t l, cudaStream_t stream) {
  const bool select = step.rows <= kSelectRows;
  const Layer& layer = step.layers[static_cast<size_t>(l)];
  if (Whole(step, l)) {
    num_hot_.push_back(0);
    AddSlices(l, layer.hot + layer.cold, From::kIds);
    return absl::OkStatus();
  }
  LaunchListNeurons({.step = parts_.Pointers(),
                     .layer = l,
                     .num_rows = step.rows,
                     .num_neurons = static_cast<int32_t>(parts_.layout->num_neurons),
                     .only_active = select,
                     .last_cold = LastListed(step, l),
                     .to_cpu = step.shared ? to_cpu_ : nullptr,
                     .active = parts_.buffers.active,
                     .hot_ids = hot_ids_[l % 2],
                     .hot_slots = hot_slots_[l % 2],
                     .cold_ids = cold_ids_[l % 2],
                     .counts = counts_.as<int32_t>()},
                    stream);
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaEventRecord(listed_, stream));
  if (!select) {
    ISOTHERM_CUDA_RETURN_IF_ERROR(cudaStreamWaitEvent(copy_stream_, listed_, 0));
    num_hot_.push_back(layer.hot);
    AddSlices(l, layer.cold, From::kListed);
    return absl::OkStatus();
  }
  while (true) {
    const cudaError_t state = cudaEventQuery(listed_);
    if (state == cudaSuccess) break;
    if (state != cudaErrorNotReady) return CudaStatus(state, "a prefill step");
    if (step.while_waiting) step.while_waiting();
  }
  const auto* const counts = counts_.as<const int32_t>();
  num_hot_.push_back(counts[0]);
  AddSlices(l, counts[1], From::kListed);
  if (step.level != nullptr && l > 0) step.level->Observe(counts[2], counts[3]);
  return absl::OkStatus();
}

absl::Status PrefillPass::ListTop(const Step& step, int32_t l, cudaStream_t stream) {
  const Layer& layer = step.layers[static_cast<size_t>(l)];
  if (layer.num_top == 0) return absl::OkStatus();
  LaunchListNeurons({.step = parts_.Pointers(),
                     .layer = l,
                     .num_rows = step.rows,
                     .num_neurons = static_cast<int32_t>(parts_.layout->num_neurons),
                     .first_cold = layer.top,
                     .last_cold = layer.hot + layer.cold,
                     .active = parts_.buffers.active,
                     .cold_ids = top_ids_[l % 2]},
                    stream);
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaEventRecord(top_listed_, stream));
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaStreamWaitEvent(copy_stream_, top_listed_, 0));
  AddSlices(l, layer.num_top, From::kTop);
  return absl::OkStatus();
}

const int32_t* PrefillPass::ListOf(const Slice& slice) const {
  switch (slice.from) {
    case From::kListed:
      return cold_ids_[slice.layer % 2] + slice.first;
    case From::kTop:
      return top_ids_[slice.layer % 2] + slice.first;
    default:
      return nullptr;
  }
}

absl::Status PrefillPass::HotNeurons(const Step& step, int32_t l, cudaStream_t stream) {
  const BundleLayout& layout = *parts_.layout;
  const Layer& layer = step.layers[static_cast<size_t>(l)];
  const int32_t hot = num_hot_[static_cast<size_t>(l)];
  const bool as_they_lie = layer.first_slot >= 0 && hot == layer.hot &&
                           (layout.dtype == DType::kF16 || layout.dtype == DType::kBF16);
  for (int32_t first = 0; first < hot; first += slice_neurons_) {
    const int32_t count = std::min(slice_neurons_, hot - first);
    Weights weights;
    if (as_they_lie && count % kListStep == 0) {
      weights = {.data = reinterpret_cast<const uint16_t*>(
                     parts_.pool + (layer.first_slot + first) * layout.bundle_bytes),
                 .stride = layout.bundle_bytes / 2,
                 .row = layout.row_bytes / 2};
    } else {
      LaunchGatherBundles({.step = parts_.Pointers(),
                           .layer = l,
                           .bundles = parts_.Bundles(),
                           .bf16 = layout.dtype == DType::kBF16,
                           .pool = parts_.pool,
                           .list = hot_slots_[l % 2] + first,
                           .count = count,
                           .blocks = kHotGatherBlocks,
                           .out = slices_[kBuffers]},
                          stream);
      weights = {.data = slices_[kBuffers],
                 .stride = layout.rows * layout.model_dim,
                 .row = layout.model_dim};
    }
    ISOTHERM_RETURN_IF_ERROR(
        Multiply(step, l, weights, {.list = hot_ids_[l % 2] + first, .count = count}, stream));
  }
  return absl::OkStatus();
}

absl::Status PrefillPass::Neurons(const Step& step, int32_t l, cudaStream_t stream) {
  const BundleLayout& layout = *parts_.layout;
  ISOTHERM_RETURN_IF_ERROR(FetchAhead(step, used_ + kBuffers));
  ISOTHERM_RETURN_IF_ERROR(HotNeurons(step, l, stream));
  for (; used_ < plan_.size() && plan_[used_].layer == l; ++used_) {
    const Slice slice = plan_[used_];
    const size_t buffer = used_ % kBuffers;
    ISOTHERM_CUDA_RETURN_IF_ERROR(cudaStreamWaitEvent(stream, ready_[buffer], 0));
    Weights weights{
        .data = slices_[buffer], .stride = layout.rows * layout.model_dim, .row = layout.model_dim};
    const Ids ids{
        .list = ListOf(slice), .first_id = slice.first, .count = slice.count, .over_pcie = true};
    if (slice.from == From::kIds) {
      weights.stride = layout.bundle_bytes / 2;
      weights.row = layout.row_bytes / 2;
    }
    ISOTHERM_RETURN_IF_ERROR(Multiply(step, l, weights, ids, stream));
    ISOTHERM_CUDA_RETURN_IF_ERROR(cudaEventRecord(free_[buffer], stream));
    ISOTHERM_RETURN_IF_ERROR(FetchAhead(step, used_ + 1 + kBuffers));
  }
  return absl::OkStatus();
}

void PrefillPass::Mark(const Step& step, int32_t l, uint64_t LayerTrace::*what,
                       cudaStream_t stream) {
  if (step.layers[static_cast<size_t>(l)].trace)
    LaunchMark(&(parts_.buffers.traces[l].*what), stream);
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
  num_hot_.clear();
  fetched_ = used_ = 0;
  parts_.Begin(step.rows, stream);
  // What is listed without looking at the rows is listed a layer ahead, so that PCIe never waits
  // for attention.
  const bool ahead = step.rows > kSelectRows;
  const auto list_ahead = [&](int32_t l) -> absl::Status {
    if (l == config.num_layers) return absl::OkStatus();
    return ahead ? List(step, l, stream) : ListTop(step, l, stream);
  };
  ISOTHERM_RETURN_IF_ERROR(list_ahead(0));
  ISOTHERM_RETURN_IF_ERROR(FetchAhead(step, kBuffers));
  const auto predict = [&](int32_t l) -> absl::Status {
    if (step.rows <= std::min(kFewPredictedRows, limits_.graph_rows)) {
      parts_.Predict(l, /*posts=*/false, step.rows, stream);
    } else {
      Mark(step, l, &LayerTrace::predict, stream);
      ISOTHERM_RETURN_IF_ERROR(Predict(step, l, stream));
      if (!step.shared) Mark(step, l, &LayerTrace::activated, stream);
    }
    if (!step.shared) return absl::OkStatus();
    LaunchDivideRows(
        {.step = parts_.Pointers(),
         .layer = l,
         .num_rows = step.rows,
         .num_neurons = static_cast<int32_t>(config.ffn_dim),
         .last = LastListed(step, l),
         .active = b.active,
         .level = step.level != nullptr ? static_cast<float>(step.level->level(step.rows)) : -1.0f,
         .to_cpu = to_cpu_},
        stream);
    LaunchPostRows({.step = parts_.Pointers(),
                    .layer = l,
                    .num_rows = step.rows,
                    .num_neurons = static_cast<int32_t>(config.ffn_dim),
                    .model_dim = dim,
                    .active = b.active,
                    .to_cpu = to_cpu_,
                    .z = b.z},
                   stream);
    return absl::OkStatus();
  };
  for (int32_t l = 0; l < config.num_layers; ++l) {
    const CudaWeights::Layer& layer = weights.layers[static_cast<size_t>(l)];
    Mark(step, l, &LayerTrace::begin, stream);
    if (config.parallel_attention) {
      // z and the active sets are of the layer's input, which attention then adds to.
      ISOTHERM_RETURN_IF_ERROR(predict(l));
      if (!ahead) ISOTHERM_RETURN_IF_ERROR(List(step, l, stream));
      ISOTHERM_RETURN_IF_ERROR(FetchAhead(step, used_ + kBuffers));
      ISOTHERM_RETURN_IF_ERROR(Attend(step, l, stream));
    } else {
      ISOTHERM_RETURN_IF_ERROR(Attend(step, l, stream));
      ISOTHERM_RETURN_IF_ERROR(predict(l));
      if (!ahead) ISOTHERM_RETURN_IF_ERROR(List(step, l, stream));
    }
    ISOTHERM_RETURN_IF_ERROR(list_ahead(l + 1));
    ISOTHERM_RETURN_IF_ERROR(Neurons(step, l, stream));
    if (step.shared) {
      LaunchMerge({.step = parts_.Pointers(),
                   .layer = l,
                   .model_dim = dim,
                   .num_neurons = static_cast<int32_t>(config.ffn_dim),
                   .bias = layer.down_bias,
                   .cold = b.cold_sums,
                   .x = b.x},
                  step.rows, stream);
      continue;
    }
    Mark(step, l, &LayerTrace::gpu_done, stream);
    Mark(step, l, &LayerTrace::streamed, stream);
    Mark(step, l, &LayerTrace::resumed, stream);
    if (layer.down_bias != nullptr) LaunchAddBias(b.x, layer.down_bias, step.rows, dim, stream);
    Mark(step, l, &LayerTrace::merged, stream);
  }
  parts_.End(step.logits, stream);
  return CudaStatus(cudaGetLastError(), "launching a prefill step");
}

}  // namespace isotherm::gpu
