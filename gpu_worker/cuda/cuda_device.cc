#include "gpu_worker/cuda/cuda_device.h"

#include <immintrin.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "common/kernels/work_hash.h"
#include "common/shm/slot_client.h"
#include "gpu_worker/cuda/driver_memory.h"
#include "gpu_worker/kv_page.h"

namespace isotherm::gpu {
namespace {

// Epochs whose tables the device holds: the live one, the next, and two that are being retired.
constexpr int kEpochPlaces = 4;
// Of the pool, kept free so that neurons can move while the live epoch keeps all of its own.
constexpr double kSpareShare = 0.015;
// Room for copies from memory that is not pinned.
constexpr int64_t kBounceBytes = int64_t{4} << 20;
// Kernels end by themselves at a step's deadline; a device that is still busy so much later hangs.
constexpr std::chrono::milliseconds kHangGrace{250};
// Of a device's free memory, left alone when no budget is given.
constexpr int64_t kReserveBytes = int64_t{512} << 20;
// A step of more rows than the graph serves is a prefill pass; so are smaller ones, if the neurons'
// memory is mapped: in a large model from where reading each weight once for all rows saves more
// than the many launches cost. A device made for few rows does without: products take memory of
// their own.
constexpr int32_t kGraphRows = 64;
constexpr int32_t kPrefillRows = 17, kPrefillRowsOfLarge = 8;
constexpr int64_t kLargeLayer = int64_t{64} << 20;  // bytes of neurons
// Of decoding: a layer that stumbled once moves its cut little.
constexpr double kFirstShare = 0.3, kCutGain = 0.1, kMostCutChange = 0.02;
// Of steps of products: rows up to, and the cpu side's level at first. It learns fast, layer by
// layer.
constexpr int32_t kProductRows[] = {16, 32, 64, 128, 256};
constexpr double kFirstLevel = 0.15;
// Share of the neurons that a row needs, times the rows: from here on some neurons are fetched
// before the active ones are known. With 30 % and 73 rows four in five are needed.
constexpr double kEarlyActivity = 16;
constexpr int32_t kMaxLogits = 64;

// Lays buffers one behind the other: first to count, then to hand out.
class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}
  template <typename T>
  T* Take(int64_t count) {
    std::byte* const at = base_ == nullptr ? nullptr : base_ + bytes_;
    bytes_ += RoundUp<int64_t>(count * static_cast<int64_t>(sizeof(T)), 256);
    return reinterpret_cast<T*>(at);
  }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* const base_;
  int64_t bytes_ = 0;
};

// What the driver says this process holds; else all that is taken on the device, which is no less.
absl::StatusOr<int64_t> UsedMemory(int device) {
  if (const std::optional<int64_t> bytes = ProcessDeviceMemory(device); bytes.has_value())
    return *bytes;
  size_t free = 0, total = 0;
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaMemGetInfo(&free, &total));
  return static_cast<int64_t>(total - free);
}

}  // namespace

bool HasCudaDevice() {
  int count = 0;
  const bool found = cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
  cudaGetLastError();
  return found;
}

absl::StatusOr<std::unique_ptr<CudaDevice>> CudaDevice::Create(
    const ModelFile& model, const CudaDeviceOptions& options,
    const std::function<void(double)>& progress) {
  const ModelConfig& config = model.config();
  const BundleLayout& layout = model.bundle_layout();
  if (options.max_rows < 1 || options.kv_pages < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_rows=", options.max_rows, " and kv_pages=", options.kv_pages, " must be at least 1"));
  }
  if (config.head_dim % 8 != 0 || config.head_dim > 256) {
    return absl::InvalidArgumentError(absl::StrCat(
        "head_dim=", config.head_dim, "; the CUDA backend has multiples of 8 up to 256"));
  }
  if (config.model_dim % 8 != 0 || config.model_dim > kMaxModelDim) {
    return absl::InvalidArgumentError(absl::StrCat("model_dim=", config.model_dim,
                                                   "; the CUDA backend has multiples of 8 up to ",
                                                   kMaxModelDim));
  }
  if (layout.row_bytes % 16 != 0 && (layout.dtype == DType::kF16 || layout.dtype == DType::kBF16)) {
    return absl::InvalidArgumentError(
        absl::StrCat("rows of ", layout.row_bytes, " bytes; the CUDA backend needs 16-byte steps"));
  }
  std::unique_ptr<CudaDevice> device(new CudaDevice(model, options));
  ISOTHERM_RETURN_IF_ERROR(device->Open());
  ISOTHERM_ASSIGN_OR_RETURN(
      device->weights_,
      CudaWeights::Load(model, {.stored_predictor = options.stored_predictor}, progress));
  ISOTHERM_RETURN_IF_ERROR(device->Allocate());
  ISOTHERM_RETURN_IF_ERROR(device->AllocateHotPool());
  return device;
}

CudaDevice::CudaDevice(const ModelFile& model, const CudaDeviceOptions& options)
    : model_(model),
      config_(model.config()),
      layout_(model.bundle_layout()),
      options_(options),
      max_pages_(static_cast<int32_t>(std::min<int64_t>(
          options.kv_pages,
          CeilDiv<int64_t>(options.context > 0 ? options.context : config_.context_length,
                           kPageSize)))),
      graph_rows_(std::min(options.max_rows, kGraphRows)),
      max_logits_(std::min(options.max_rows, kMaxLogits)),
      product_rows_(options.product_rows > 0 ? options.product_rows
                    : options.max_rows >= kPrefillRows && layout_.layer_bytes() >= kLargeLayer
                        ? kPrefillRowsOfLarge
                        : kPrefillRows),
      logits_offset_(RoundUp<int64_t>(StateBytes(config_.num_layers), 256)),
      cuts_(static_cast<size_t>(config_.num_layers),
            CutController(layout_.num_neurons, options.streamed_share, kFirstShare, kCutGain,
                          kMostCutChange)),
      layer_steps_(static_cast<size_t>(config_.num_layers)),
      asked_traces_(layer_steps_.size()) {
  if (options.streamed_share < 0)
    product_levels_.assign(std::size(kProductRows), ShareLevel(kFirstLevel));
}

CudaDevice::~CudaDevice() {
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  if (copy_stream_ != nullptr) cudaStreamSynchronize(copy_stream_);
  graph_.reset();
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
  if (copy_stream_ != nullptr) cudaStreamDestroy(copy_stream_);
}

// The context, as small as it can be made: no device heap, no printf buffer, small stacks.
absl::Status CudaDevice::Open() {
  AllowEarlyLaunch(options_.early_launch);
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaSetDevice(options_.device));
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaSetDeviceFlags(cudaDeviceScheduleSpin | cudaDeviceMapHost));
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaDeviceSetLimit(cudaLimitMallocHeapSize, 0));
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaDeviceSetLimit(cudaLimitPrintfFifoSize, 0));
  cudaGetLastError();
  cudaDeviceProp properties;
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaGetDeviceProperties(&properties, options_.device));
  name_ = properties.name;
  isa_ = absl::StrCat("sm_", properties.major, properties.minor);
  if (properties.major < 8) {
    return WithExitCode(
        absl::FailedPreconditionError(absl::StrCat(
            name_, " is ", isa_, "; the CUDA backend needs sm_80 or newer: try --device cpu")),
        ExitCode::kCannotFit);
  }
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaStreamCreateWithFlags(&copy_stream_, cudaStreamNonBlocking));
  ISOTHERM_ASSIGN_OR_RETURN(memory_.context, UsedMemory(options_.device));
  return absl::OkStatus();
}

absl::Status CudaDevice::Allocate() {
  memory_.dense = weights_.dense_bytes;
  memory_.head = weights_.head_bytes;
  memory_.predictor = weights_.predictor_bytes;
  ISOTHERM_ASSIGN_OR_RETURN(int64_t kv_bytes, CheckedMul(int64_t{2} * sizeof(uint16_t) * kPageSize,
                                                         int64_t{options_.kv_pages}));
  for (const int64_t factor : {config_.num_layers, config_.num_kv_heads, config_.head_dim}) {
    ISOTHERM_ASSIGN_OR_RETURN(kv_bytes, CheckedMul(kv_bytes, factor));
  }
  ISOTHERM_ASSIGN_OR_RETURN(kv_, DeviceBytes::Make(kv_bytes));
  memory_.kv = kv_bytes;

  const int32_t all_rows = options_.max_rows, rows = graph_rows_;
  const int64_t q_dim = config_.num_q_heads * config_.head_dim;
  int64_t max_rank = 0;
  for (const CudaWeights::Layer& layer : weights_.layers)
    max_rank = std::max(max_rank, layer.fc1.rows);
  const int64_t words = CeilDiv<int64_t>(config_.ffn_dim, 64);
  const int64_t half = config_.rope_dims / 2;
  const AttentionShape shape = StepParts{.config = &config_, .layout = &layout_}.Shape();
  input_layout_ = StepInputs::Make(config_.num_layers, all_rows, max_pages_);
  const auto carve = [&](Carver& carver) {
    StepBuffersCuda b;
    b.hidden_stride = static_cast<int32_t>(max_rank);
    b.x = carver.Take<float>(all_rows * config_.model_dim);
    b.q = carver.Take<float>(rows * q_dim);
    b.attention = carver.Take<float>(rows * q_dim);
    b.hidden = carver.Take<float>(rows * max_rank);
    b.hot_partial = carver.Take<float>(PartialFloats(kHotBlocks, rows, config_.model_dim));
    b.streamed_partial = carver.Take<float>(PartialFloats(kStreamBlocks, rows, config_.model_dim));
    b.hot_computed = carver.Take<int32_t>(rows);
    b.streamed_computed = carver.Take<int32_t>(rows);
    b.rope_cos = carver.Take<float>(all_rows * half);
    b.rope_sin = carver.Take<float>(all_rows * half);
    b.logits = carver.Take<float>(max_logits_ * config_.vocab_size);
    b.z = carver.Take<uint16_t>(all_rows * config_.model_dim);
    b.active = carver.Take<uint64_t>(all_rows * words);
    b.predicted = carver.Take<uint32_t>(config_.num_layers * config_.ffn_dim);
    b.fired = carver.Take<uint32_t>(config_.num_layers * config_.ffn_dim);
    b.read = carver.Take<uint64_t>(config_.num_layers);
    b.attention_scratch = carver.Take<unsigned char>(AttentionScratchBytes(shape, rows));
    b.rope_frequencies = carver.Take<double>(half);
    b.inputs = carver.Take<unsigned char>(input_layout_.bytes);
    b.state =
        reinterpret_cast<StepState*>(carver.Take<unsigned char>(StateBytes(config_.num_layers)));
    b.times = reinterpret_cast<LayerTimes*>(b.state + 1);
    b.traces = carver.Take<LayerTrace>(config_.num_layers);
    return b;
  };
  Carver counting(nullptr);
  carve(counting);
  ISOTHERM_ASSIGN_OR_RETURN(work_memory_, DeviceBytes::Make(counting.bytes()));
  memory_.workspace = counting.bytes();
  Carver carver(work_memory_.as<>());
  buffers_ = carve(carver);
  ISOTHERM_CUDA_RETURN_IF_ERROR(
      cudaMemcpy(buffers_.rope_frequencies, weights_.rope_frequencies.data(),
                 weights_.rope_frequencies.size() * sizeof(double), cudaMemcpyHostToDevice));
  ISOTHERM_ASSIGN_OR_RETURN(inputs_, PinnedBytes::Make(input_layout_.bytes));
  ISOTHERM_ASSIGN_OR_RETURN(
      results_, PinnedBytes::Make(logits_offset_ + max_logits_ * config_.vocab_size * int64_t{4}));
  ISOTHERM_ASSIGN_OR_RETURN(
      traces_, PinnedBytes::Make(config_.num_layers * static_cast<int64_t>(sizeof(LayerTrace))));
  ISOTHERM_ASSIGN_OR_RETURN(bounce_, PinnedBytes::Make(kBounceBytes));
  ISOTHERM_ASSIGN_OR_RETURN(
      counters_,
      CudaCounters::Create(
          config_.num_layers, config_.ffn_dim, layout_.bundle_bytes, config_.sparse,
          {.predicted = buffers_.predicted, .fired = buffers_.fired, .read = buffers_.read}));

  ISOTHERM_ASSIGN_OR_RETURN(
      pool_memory_,
      HotMemory::Reserve(options_.device, layout_.layer_bytes() * layout_.num_layers));
  const StepParts parts{.config = &config_,
                        .layout = &layout_,
                        .weights = &weights_,
                        .buffers = buffers_,
                        .inputs = input_layout_,
                        .kv = kv_.as<uint16_t>(),
                        .kv_pages = options_.kv_pages,
                        .pool = pool_memory_->data(),
                        .host_inputs = inputs_.as<>(),
                        .host_results = results_.as<>(),
                        .logits_offset = logits_offset_};
  graph_ = std::make_unique<StepGraph>(parts, rows);
  ISOTHERM_RETURN_IF_ERROR(graph_->Capture(stream_));
  if (all_rows < product_rows_) return absl::OkStatus();
  ISOTHERM_ASSIGN_OR_RETURN(
      prefill_, PrefillPass::Create(parts, {.max_rows = all_rows, .graph_rows = rows}, stream_));
  memory_.workspace += prefill_->bytes();
  return absl::OkStatus();
}

// Last, so that it gets what the budget leaves.
absl::Status CudaDevice::AllocateHotPool() {
  const int64_t all = layout_.num_neurons * layout_.num_layers;
  // Tables grow with the pool: ids and slots of each hot neuron, in every place.
  constexpr int64_t kTableBytes = int64_t{8} * kEpochPlaces;
  const int64_t fixed_tables =
      kEpochPlaces * layout_.num_layers *
      (static_cast<int64_t>(sizeof(LayerTable)) + 16 * CeilDiv<int64_t>(layout_.num_neurons, 64));
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t used, UsedMemory(options_.device));
  int64_t budget = options_.vram_budget;
  if (budget < 0) {
    size_t free = 0, total = 0;
    ISOTHERM_CUDA_RETURN_IF_ERROR(cudaMemGetInfo(&free, &total));
    budget = used + static_cast<int64_t>(free) - kReserveBytes;
  }
  // Each place's tables and the pool itself end on a step of the driver's.
  const int64_t rounding = (kEpochPlaces + 1) * pool_memory_->granularity();
  const int64_t left = budget - used - fixed_tables - rounding;
  if (left < 0) {
    return WithExitCode(
        absl::ResourceExhaustedError(absl::StrCat(
            "--vram-budget ", FormatBytes(budget), " is below the ",
            FormatBytes(used + fixed_tables + rounding),
            " that context, dense weights, predictors, KV and workspace take; raise it, or lower "
            "--context or --max-rows")),
        ExitCode::kCannotFit);
  }
  int64_t slots = std::min(all, left / (layout_.bundle_bytes + kTableBytes));
  ISOTHERM_RETURN_IF_ERROR(
      pool_memory_->Resize(RoundUp(slots * layout_.bundle_bytes, pool_memory_->granularity())));
  slots = std::min(all, pool_memory_->bytes() / layout_.bundle_bytes);
  const int64_t capacity =
      slots == all ? all : slots - static_cast<int64_t>(kSpareShare * static_cast<double>(slots));
  hot_pool_ = std::make_unique<HotPool>(layout_, capacity, slots);
  memory_.hot_pool = pool_memory_->bytes();
  memory_.budget = budget;
  ISOTHERM_ASSIGN_OR_RETURN(tables_, CudaTables::Create(layout_, slots, kEpochPlaces));
  memory_.tables = tables_->bytes();
  ISOTHERM_RETURN_IF_ERROR(tables_->Add(hot_pool_->Find(kBuiltInEpoch), copy_stream_));
  ISOTHERM_ASSIGN_OR_RETURN(memory_.process, UsedMemory(options_.device));
  process_bytes_ = memory_.process;
  return absl::OkStatus();
}

DeviceInfo CudaDevice::Describe() const {
  DeviceMemoryUse memory = memory_;
  memory.process = process_bytes_;
  return {
      .name = name_,
      .isa = isa_,
      .threads = 0,
      .hot_capacity_bytes = hot_pool_->capacity_bytes(),
      .hot_free_bytes = std::max<int64_t>(0, hot_pool_->capacity_bytes() - hot_pool_->used_bytes()),
      .hot_spare_bytes = hot_pool_->spare_bytes(),
      .kv_pages = options_.kv_pages,
      .max_rows = options_.max_rows,
      .rings_by_itself = true,
      .memory = memory};
}

absl::StatusOr<std::shared_ptr<void>> CudaDevice::Map(const ColdSide& cold) {
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaSetDevice(options_.device));
  ISOTHERM_ASSIGN_OR_RETURN(std::shared_ptr<MappedCold> mapped, MappedCold::Make(cold, layout_));
  std::lock_guard lock(mapped_mu_);
  std::erase_if(mapped_, [](const std::weak_ptr<MappedCold>& old) { return old.expired(); });
  mapped_.push_back(mapped);
  return std::shared_ptr<void>(std::move(mapped));
}

std::shared_ptr<MappedCold> CudaDevice::FindMapped(const ColdSide& cold) {
  shm::SlotClient* const slots = cold.link != nullptr ? cold.link->slots() : nullptr;
  std::lock_guard lock(mapped_mu_);
  for (const std::weak_ptr<MappedCold>& weak : mapped_) {
    std::shared_ptr<MappedCold> mapped = weak.lock();
    if (mapped != nullptr && mapped->arena() == cold.arena && mapped->slots() == slots)
      return mapped;
  }
  return nullptr;
}

absl::Status CudaDevice::Prepare(const PlacementPlan& plan, const NeuronStore* source,
                                 const std::function<void(int64_t, int64_t)>& progress) {
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaSetDevice(options_.device));
  const auto bytes = static_cast<size_t>(layout_.bundle_bytes);
  const auto bundles_of_bounce =
      std::max<int64_t>(1, kBounceBytes / std::max<int64_t>(1, layout_.bundle_bytes));
  std::shared_ptr<MappedCold> mapped;  // whose arena is read without a detour
  {
    std::lock_guard lock(mapped_mu_);
    for (const std::weak_ptr<MappedCold>& weak : mapped_) {
      std::shared_ptr<MappedCold> candidate = weak.lock();
      if (candidate != nullptr && source != nullptr && candidate->arena() == source)
        mapped = std::move(candidate);
    }
  }
  AlignedBytes packed;  // of one layer, when there is no store
  int64_t packed_layer = -1;
  int64_t in_bounce = 0;
  const auto copy = [&](int64_t layer, int64_t neuron, int32_t slot) -> absl::Status {
    const std::byte* from = nullptr;
    if (source != nullptr) {
      from = source->Layer(layer).data + neuron * layout_.bundle_bytes;
    } else {
      if (packed_layer != layer) {
        packed_layer = -1;
        if (packed.data() == nullptr)
          packed = AlignedBytes(static_cast<size_t>(layout_.layer_bytes()));
        if (packed.data() == nullptr) {
          return absl::ResourceExhaustedError(absl::StrCat(
              "moving neurons needs ", FormatBytes(layout_.layer_bytes()), " of memory"));
        }
        ISOTHERM_RETURN_IF_ERROR(model_.PackBundles(layer, 0, layout_.num_neurons, packed.span()));
        packed_layer = layer;
      }
      from = packed.data() + neuron * layout_.bundle_bytes;
    }
    unsigned char* const to = pool_memory_->data() + slot * layout_.bundle_bytes;
    if (mapped == nullptr || !mapped->Holds(from)) {
      // Pageable copies would stop the device; bundles go through pinned memory.
      if (layout_.bundle_bytes > kBounceBytes)
        return absl::InternalError(absl::StrCat("a neuron of ", bytes, " bytes"));
      if (in_bounce == bundles_of_bounce) {
        ISOTHERM_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(copy_stream_));
        in_bounce = 0;
      }
      std::byte* const pinned = bounce_.as<>() + in_bounce++ * layout_.bundle_bytes;
      std::memcpy(pinned, from, bytes);
      from = pinned;
    }
    return CudaStatus(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, copy_stream_),
                      "copying a hot neuron");
  };
  ISOTHERM_RETURN_IF_ERROR(hot_pool_->Prepare(
      plan, copy, progress, [&](const std::shared_ptr<const EpochTables>& tables) -> absl::Status {
        ISOTHERM_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(copy_stream_));
        return tables_->Add(tables, copy_stream_);
      }));
  // Steps have run since: what the driver loads late counts, too.
  if (const absl::StatusOr<int64_t> used = UsedMemory(options_.device); used.ok())
    process_bytes_ = *used;
  return absl::OkStatus();
}

// Everything that indexes memory later.
absl::Status CudaDevice::Check(const DeviceBatch& batch) const {
  if (batch.rows.size() > static_cast<size_t>(options_.max_rows)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a step of ", batch.rows.size(), " rows; at most ", options_.max_rows));
  }
  for (const DeviceRow& row : batch.rows) {
    if (row.token < 0 || row.token >= config_.vocab_size || row.position < 0 ||
        row.position >= int64_t{max_pages_} * kPageSize ||
        static_cast<size_t>(row.position / kPageSize) >= row.pages.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("row with token ", row.token, " at position ", row.position, " and ",
                       row.pages.size(), " pages; the vocabulary has ", config_.vocab_size,
                       ", a sequence ", int64_t{max_pages_} * kPageSize, " tokens"));
    }
    for (int32_t p = 0; p <= row.position / kPageSize; ++p) {
      const int32_t page = row.pages[static_cast<size_t>(p)];
      if (page < 0 || page >= options_.kv_pages) {
        return absl::InvalidArgumentError(
            absl::StrCat("row with page ", page, "; the pool has ", options_.kv_pages));
      }
    }
  }
  const auto sampling = std::count_if(batch.rows.begin(), batch.rows.end(),
                                      [](const DeviceRow& row) { return row.sampling != nullptr; });
  if (sampling > max_logits_) {
    return absl::InvalidArgumentError(
        absl::StrCat("a step with ", sampling, " rows that sample; at most ", max_logits_));
  }
  for (const LayerRange& range : batch.layers) {
    if (range.first < 0 || range.last < range.first || range.last > config_.num_layers) {
      return absl::InvalidArgumentError(absl::StrCat("layers ", range.first, " to ", range.last,
                                                     "; the model has ", config_.num_layers));
    }
  }
  return absl::OkStatus();
}

void CudaDevice::FillInputs(const DeviceBatch& batch, const MappedCold* cold, const SlotRing& ring,
                            const LayerTable* tables, uint64_t nonce) {
  std::byte* const base = inputs_.as<>();
  auto* const rows = reinterpret_cast<gpu::StepRow*>(base + input_layout_.rows);
  auto* const logit_rows = reinterpret_cast<int32_t*>(base + input_layout_.logit_rows);
  auto* const pages = reinterpret_cast<int32_t*>(base + input_layout_.pages);
  num_logits_ = 0;
  page_tables_ = 0;
  const int32_t* last_pages = nullptr;
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    const DeviceRow& row = batch.rows[r];
    // Rows of one sequence stand together and share one table, that of the last of them.
    if (row.pages.data() != last_pages) ++page_tables_;
    last_pages = row.pages.data();
    const auto used = static_cast<size_t>(row.position / kPageSize + 1);
    std::memcpy(pages + (page_tables_ - 1) * max_pages_, row.pages.data(), used * sizeof(int32_t));
    rows[r] = {.token = row.token,
               .position = row.position,
               .table = static_cast<int32_t>(page_tables_ - 1),
               .exact = row.exact ? 1 : 0,
               .key = StepKey(nonce, static_cast<uint64_t>(batch.step_id),
                              static_cast<uint64_t>(batch.attempt), r)};
    if (row.sampling != nullptr) logit_rows[num_logits_++] = static_cast<int32_t>(r);
  }
  // With a level no id is below the cut of a step of products.
  const bool by_level = in_products_ && !product_levels_.empty();
  for (size_t l = 0; l < layer_steps_.size(); ++l)
    layer_steps_[l] = {.flags = 0, .cut = by_level ? 0 : cuts_[l].cut()};
  std::fill(asked_traces_.begin(), asked_traces_.end(), uint8_t{0});
  for (const LayerRange& range : batch.layers) {
    const int32_t flags = (range.mode == LayerMode::kExact ? kLayerExact : 0) |
                          (range.mode == LayerMode::kGpuOnly ? kLayerGpuOnly : 0) |
                          (range.trace ? kLayerTrace : 0);
    for (int32_t l = range.first; l < range.last; ++l) {
      layer_steps_[static_cast<size_t>(l)].flags = flags;
      asked_traces_[static_cast<size_t>(l)] = range.trace ? 1 : 0;
    }
  }
  if (counters_->TimesDue()) {
    for (LayerStep& layer : layer_steps_) layer.flags |= kLayerTrace;
  }
  // Without an arena here every cold neuron is the cpu side's.
  if (cold == nullptr || cold->layers() == nullptr) {
    for (LayerStep& layer : layer_steps_) layer.cut = static_cast<int32_t>(layout_.num_neurons);
  }
  std::memcpy(base + input_layout_.layers, layer_steps_.data(),
              layer_steps_.size() * sizeof(LayerStep));
  const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(
      batch.deadline - std::chrono::steady_clock::now());
  StepHeader header{.num_rows = static_cast<int32_t>(batch.rows.size()),
                    .num_logits = num_logits_,
                    .max_pages = max_pages_,
                    .attempt = batch.attempt,
                    .step_id = batch.step_id,
                    .epoch = batch.epoch,
                    .time_left_ns = std::max<int64_t>(0, left.count()),
                    .tables = tables,
                    .arena = cold != nullptr ? cold->layers() : nullptr,
                    .ring = ring};
  if (ring.base != nullptr) header.next_sequence = cold->slots()->next_sequence();
  std::memcpy(base + input_layout_.header, &header, sizeof(header));
}

// Waits for the queued step, and meanwhile wakes a cpu side that sleeps: the device cannot.
absl::Status CudaDevice::AwaitStep(TimePoint deadline, ColdLink* link) {
  shm::SlotClient* const slots = link != nullptr ? link->slots() : nullptr;
  while (true) {
    const cudaError_t state = cudaStreamQuery(stream_);
    if (state == cudaSuccess) return absl::OkStatus();
    if (state != cudaErrorNotReady) return CudaStatus(state, "a step");
    if (slots != nullptr) slots->RingSleeper();
    if (std::chrono::steady_clock::now() > deadline + kHangGrace) {
      // Nothing can be freed or awaited any more: whoever supervises this process starts a new one.
      std::fprintf(stderr, "isotherm-gpu-worker: the GPU did not finish a step by its deadline\n");
      ::_exit(static_cast<int>(ExitCode::kInternal));
    }
    for (int i = 0; i < 32; ++i) _mm_pause();
  }
}

bool CudaDevice::InProducts(int32_t rows, const MappedCold* cold) const {
  const bool arena = cold != nullptr && cold->layers() != nullptr;
  return rows > graph_rows_ || (prefill_ != nullptr && arena && rows >= product_rows_);
}

size_t CudaDevice::Bucket(int32_t rows) {
  size_t bucket = 0;
  while (bucket + 1 < std::size(kProductRows) && rows > kProductRows[bucket]) ++bucket;
  return bucket;
}

void CudaDevice::ObserveCuts() {
  const auto* const times = reinterpret_cast<const LayerTimes*>(&state() + 1);
  for (size_t l = 0; l < cuts_.size(); ++l) {
    cuts_[l].Observe(static_cast<double>(times[l].cpu_ns),
                     static_cast<double>(times[l].streamed_ns));
  }
}

void CudaDevice::Survey(const std::shared_ptr<const EpochTables>& epoch) {
  if (surveyed_.lock() == epoch) return;
  surveyed_ = epoch;
  survey_.clear();
  for (const EpochTables::Layer& table : epoch->layers) {
    PrefillPass::Layer layer{.hot = static_cast<int32_t>(table.num_hot),
                             .cold = static_cast<int32_t>(layout_.num_neurons - table.num_hot)};
    int32_t next = -1;  // slot
    for (const int32_t slot : table.slot_of) {
      if (slot < 0) continue;
      if (next < 0) layer.first_slot = slot;
      if (next >= 0 && slot != next) {
        layer.first_slot = -1;
        break;
      }
      next = slot + 1;
    }
    layer.top = static_cast<int32_t>(layout_.num_neurons);
    if (prefill_ != nullptr) {
      while (layer.top >= 64) {
        const int32_t first = (layer.top - 1) / 64 * 64;
        const int32_t count = std::popcount(table.cold[static_cast<size_t>(first / 64)]);
        if (layer.num_top + count > prefill_->slice_neurons()) break;
        layer.num_top += count;
        layer.top = first;
      }
    }
    survey_.push_back(layer);
  }
}

PrefillPass::Step CudaDevice::ProductStep(const DeviceBatch& batch, const MappedCold& cold,
                                          ColdLink* link) {
  PrefillPass::Step step{.rows = static_cast<int32_t>(batch.rows.size()),
                         .logits = num_logits_,
                         .page_tables = page_tables_,
                         .shared = link != nullptr,
                         .layers = survey_};
  if (link != nullptr && !product_levels_.empty()) step.level = &product_levels_[Bucket(step.rows)];
  if (link != nullptr) step.while_waiting = [link] { link->slots()->RingSleeper(); };
  // Early ones are worth it where a row's neurons are mostly another's, too.
  const bool early = activity_ * static_cast<double>(batch.rows.size()) >= kEarlyActivity;
  for (size_t l = 0; l < step.layers.size(); ++l) {
    const bool to_cpu = link != nullptr && (layer_steps_[l].flags & kLayerGpuOnly) == 0;
    if (!early || (to_cpu && step.layers[l].top < layer_steps_[l].cut)) step.layers[l].num_top = 0;
    step.layers[l].arena = cold.arena()->Layer(static_cast<int64_t>(l)).data;
    step.layers[l].trace = (layer_steps_[l].flags & kLayerTrace) != 0;
  }
  return step;
}

absl::Status CudaDevice::RunOnce(const DeviceBatch& batch, const MappedCold* cold, ColdLink* link,
                                 const LayerTable* tables, uint64_t nonce) {
  const auto rows = static_cast<int32_t>(batch.rows.size());
  const bool arena = cold != nullptr && cold->layers() != nullptr;
  in_products_ = InProducts(rows, cold);
  if (in_products_ && !arena) {
    return absl::UnavailableError(absl::StrCat(
        "a step of ", rows, " rows reads neurons that are not mapped here; send at most ",
        graph_rows_, " rows, or attach a cpu_worker on this host"));
  }
  // Without cold neurons there is nothing to post, and nobody needs to be woken.
  const bool any_cold = std::any_of(survey_.begin(), survey_.end(),
                                    [](const PrefillPass::Layer& layer) { return layer.cold > 0; });
  SlotRing ring;
  if (cold != nullptr && link != nullptr && any_cold &&
      (!in_products_ || rows <= std::min(PrefillPass::kMostSharedRows, cold->max_rows())))
    ring = cold->ring();
  shared_ = ring.base != nullptr;
  if (shared_) ISOTHERM_RETURN_IF_ERROR(cold->slots()->AwaitIdle(batch.deadline));
  FillInputs(batch, cold, ring, tables, nonce);
  if (in_products_) {
    ISOTHERM_RETURN_IF_ERROR(prefill_->Launch(
        ProductStep(batch, *cold, ring.base != nullptr ? link : nullptr), stream_));
  } else {
    ISOTHERM_RETURN_IF_ERROR(graph_->Launch(rows, num_logits_, page_tables_, stream_));
  }
  ISOTHERM_RETURN_IF_ERROR(AwaitStep(batch.deadline, link));
  if (ring.base != nullptr) {
    cold->slots()->Resume(state().next_sequence);
    if (state().failure != kStepOk) cold->slots()->CancelPosted();
  }
  return StepStatus();
}

absl::Status CudaDevice::RunStep(const DeviceBatch& batch, const ColdSide& cold,
                                 DeviceOutput* output) {
  *output = DeviceOutput();
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaSetDevice(options_.device));
  const std::shared_ptr<const EpochTables> epoch = hot_pool_->Find(batch.epoch);
  const LayerTable* const tables = epoch != nullptr ? tables_->Find(epoch.get()) : nullptr;
  if (tables == nullptr)
    return absl::AbortedError(absl::StrCat("epoch ", batch.epoch, " is not prepared here"));
  ISOTHERM_RETURN_IF_ERROR(Check(batch));
  const std::shared_ptr<MappedCold> mapped = FindMapped(cold);
  ColdLink* link = cold.link != nullptr && cold.link->alive() ? cold.link : nullptr;
  if (mapped == nullptr && (link != nullptr || cold.arena != nullptr))
    return absl::FailedPreconditionError("a cold side that was not mapped for the device");
  const uint64_t nonce = link != nullptr ? link->hash_nonce() : 0;
  Survey(epoch);
  const bool decode = !batch.rows.empty() &&
                      std::all_of(batch.rows.begin(), batch.rows.end(),
                                  [](const DeviceRow& row) { return row.sampling != nullptr; });
  counters_->AddStep(batch.epoch, static_cast<int64_t>(batch.rows.size()), decode);
  if (batch.rows.empty()) {
    if (link == nullptr) return absl::OkStatus();
    return link->EndOfStep(batch.step_id, batch.epoch, batch.attempt, batch.deadline);
  }
  absl::Status status = RunOnce(batch, mapped.get(), link, tables, nonce);
  if (!status.ok() && link != nullptr && !link->alive() && cold.arena != nullptr &&
      (absl::IsUnavailable(status) || absl::IsInternal(status)) &&
      cudaPeekAtLastError() == cudaSuccess) {
    // The cpu_worker was lost: the whole step again, its neurons from the arena.
    output->cpu_recomputed = true;
    link = nullptr;
    status = RunOnce(batch, mapped.get(), nullptr, tables, nonce);
  }
  ISOTHERM_RETURN_IF_ERROR(status);
  output->owed_hash = state().owed_hash;
  output->work_hash = state().work_hash;
  output->active_neurons = state().active_neurons;
  output->hot_neurons = state().hot_neurons;
  output->open_neurons = state().open_neurons;
  activity_ = static_cast<double>(state().active_neurons) /
              (static_cast<double>(batch.rows.size()) *
               static_cast<double>(layout_.num_neurons * layout_.num_layers));
  if (shared_ && !in_products_) ObserveCuts();  // products learn as they go
  if (link != nullptr) {
    status = link->EndOfStep(batch.step_id, batch.epoch, batch.attempt, batch.deadline);
    if (!status.ok() && link->alive()) return status;
    if (!status.ok()) {  // it will not report this step; its results were accepted layer by layer
      output->cpu_recomputed = true;
      output->work_hash += state().cold_hash;
    }
  }
  ISOTHERM_RETURN_IF_ERROR(Count(batch, output));
  return Sample(batch, output);
}

}  // namespace isotherm::gpu
