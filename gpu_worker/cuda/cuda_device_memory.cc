// What a CudaDevice keeps in memory: its buffers, the hot pool within the budget, the mapped cold
// side, and the copies of hot neurons.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "common/shm/slot_client.h"
#include "gpu_worker/cuda/cuda_device.h"
#include "gpu_worker/cuda/driver_memory.h"
#include "gpu_worker/device_shortage.h"
#include "gpu_worker/kv_page.h"

namespace isotherm::gpu {
namespace {
// Epochs whose tables the device holds: the live one, the next, and two that are being retired.
constexpr int kEpochPlaces = 4;
// Room for copies from memory that is not pinned.
constexpr int64_t kBounceBytes = int64_t{4} << 20;
// Of a device's free memory, left alone when no budget is given.
constexpr int64_t kReserveBytes = int64_t{512} << 20;

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

}  // namespace

absl::Status CudaDevice::Allocate() {
  memory_.dense = weights_.dense_bytes;
  memory_.head = weights_.head_bytes;
  memory_.predictor = weights_.predictor_bytes;
  ISOTHERM_ASSIGN_OR_RETURN(int64_t kv_bytes, CheckedMul(int64_t{2} * sizeof(uint16_t) * kPageSize,
                                                         int64_t{options_.kv_pages}));
  for (const int64_t factor : {config_.num_layers, config_.num_kv_heads, config_.head_dim}) {
    ISOTHERM_ASSIGN_OR_RETURN(kv_bytes, CheckedMul(kv_bytes, factor));
  }
  ISOTHERM_ASSIGN_OR_RETURN(kv_, DeviceBytes::Make(kv_bytes, "the KV cache"));
  memory_.kv = kv_bytes;

  const int32_t all_rows = options_.max_rows, rows = graph_rows_;
  const int64_t q_dim = config_.num_q_heads * config_.head_dim;
  int64_t max_rank = 0;
  for (const CudaWeights::Layer& layer : weights_.layers)
    max_rank = std::max(max_rank, layer.fc1.rows);
  const int64_t words = CeilDiv<int64_t>(config_.ffn_dim, 64);
  const int64_t half = config_.rope_dims / 2;
  const AttentionShape shape = StepParts{.config = &config_, .layout = &layout_}.Shape();
  input_layout_ = StepInputs::Make(config_.num_layers, all_rows, max_logits_, max_pages_);
  const int64_t state_bytes = StateBytes(config_.num_layers, max_logits_);
  const auto carve = [&](Carver& carver) {
    StepBuffersCuda b;
    b.hidden_stride = static_cast<int32_t>(max_rank);
    b.x = carver.Take<float>(all_rows * config_.model_dim);
    b.q = carver.Take<float>(rows * q_dim);
    b.attention = carver.Take<float>(rows * q_dim);
    b.hidden = carver.Take<float>(rows * max_rank);
    b.hot_partial = carver.Take<float>(PartialFloats(kHotBlocks, rows, config_.model_dim));
    b.streamed_partial = carver.Take<float>(PartialFloats(kStreamBlocks, rows, config_.model_dim));
    b.cold_sums = carver.Take<float>(kFetchedFloats);
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
    b.state = reinterpret_cast<StepState*>(carver.Take<unsigned char>(state_bytes));
    b.times = reinterpret_cast<LayerTimes*>(b.state + 1);
    b.tokens = reinterpret_cast<int32_t*>(b.times + config_.num_layers);
    b.traces = carver.Take<LayerTrace>(config_.num_layers);
    return b;
  };
  Carver counting(nullptr);
  carve(counting);
  ISOTHERM_ASSIGN_OR_RETURN(work_memory_, DeviceBytes::Make(counting.bytes(), "the workspace"));
  memory_.workspace = counting.bytes();
  Carver carver(work_memory_.as<>());
  buffers_ = carve(carver);
  ISOTHERM_CUDA_RETURN_IF_ERROR(
      cudaMemcpy(buffers_.rope_frequencies, weights_.rope_frequencies.data(),
                 weights_.rope_frequencies.size() * sizeof(double), cudaMemcpyHostToDevice));
  for (Place& place : places_) {
    ISOTHERM_ASSIGN_OR_RETURN(place.inputs, PinnedBytes::Make(input_layout_.bytes));
    ISOTHERM_ASSIGN_OR_RETURN(place.results, PinnedBytes::Make(state_bytes));
    ISOTHERM_ASSIGN_OR_RETURN(
        place.traces,
        PinnedBytes::Make(config_.num_layers * static_cast<int64_t>(sizeof(LayerTrace))));
    ISOTHERM_CUDA_RETURN_IF_ERROR(cudaEventCreateWithFlags(&place.done, cudaEventDisableTiming));
  }
  ISOTHERM_ASSIGN_OR_RETURN(logits_,
                            PinnedBytes::Make(max_logits_ * config_.vocab_size * int64_t{4}));
  ISOTHERM_ASSIGN_OR_RETURN(bounce_, PinnedBytes::Make(kBounceBytes));
  ISOTHERM_ASSIGN_OR_RETURN(withdrawn_, PinnedBytes::Make(sizeof(int32_t)));
  *withdrawn_.as<int32_t>() = 0;
  buffers_.withdrawn = withdrawn_.as<const int32_t>();
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
                        .pool = pool_memory_->data()};
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
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t used, UsedDeviceMemory(options_.device));
  size_t free = 0, total = 0;
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaMemGetInfo(&free, &total));
  const bool automatic = options_.vram_budget < 0;
  const int64_t budget =
      automatic ? used + static_cast<int64_t>(free) - kReserveBytes : options_.vram_budget;
  // Each place's tables and the pool itself end on a step of the driver's.
  const int64_t least = used + fixed_tables + (kEpochPlaces + 1) * pool_memory_->granularity();
  const int64_t left = budget - least;
  if (left < 0 && automatic) {
    return ShortageStatus({.what = "the rest of the start, with a reserve of 512 MiB,",
                           .needed_bytes = least - used + kReserveBytes,
                           .free_bytes = static_cast<int64_t>(free),
                           .total_bytes = static_cast<int64_t>(total),
                           .remedy = kLessOfTheDevice});
  }
  if (left < 0 || budget > static_cast<int64_t>(total)) {
    const std::string cause =
        left < 0 ? absl::StrCat("below the ", FormatBytes(least),
                                " that context, dense weights, predictors, KV and workspace take; "
                                "raise it, or lower --context or --max-rows")
                 : absl::StrCat("more than the ", FormatBytes(static_cast<int64_t>(total)),
                                " that the GPU has; lower it");
    return WithExitCode(absl::ResourceExhaustedError(
                            absl::StrCat("--vram-budget ", FormatBytes(budget), " is ", cause)),
                        ExitCode::kCannotFit);
  }
  int64_t slots = std::min(all, left / (layout_.bundle_bytes + kTableBytes));
  ISOTHERM_RETURN_IF_ERROR(
      pool_memory_->Resize(RoundUp(slots * layout_.bundle_bytes, pool_memory_->granularity())));
  slots = std::min(all, pool_memory_->bytes() / layout_.bundle_bytes);
  hot_pool_ = std::make_unique<HotPool>(layout_, HotPoolBudget::Capacity(slots, all), slots);
  hot_budget_ =
      std::make_unique<HotPoolBudget>(*hot_pool_, *pool_memory_, gate_, layout_.bundle_bytes);
  memory_.budget = budget;
  ISOTHERM_ASSIGN_OR_RETURN(tables_, CudaTables::Create(layout_, slots, kEpochPlaces));
  memory_.tables = tables_->bytes();
  ISOTHERM_RETURN_IF_ERROR(tables_->Add(hot_pool_->Find(kBuiltInEpoch), copy_stream_));
  // What the driver loads with the first copy of this kind it loads now, not during a step.
  if (slots > 1) ISOTHERM_RETURN_IF_ERROR(MoveBundle(0, 1));
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(copy_stream_));
  ISOTHERM_ASSIGN_OR_RETURN(process_bytes_, UsedDeviceMemory(options_.device));
  return absl::OkStatus();
}

void CudaDevice::MeasureProcess() {
  if (const absl::StatusOr<int64_t> used = UsedDeviceMemory(options_.device); used.ok())
    process_bytes_ = *used;
}

DeviceInfo CudaDevice::Describe() const {
  DeviceMemoryUse memory = memory_;
  memory.hot_pool = hot_budget_->memory_bytes();
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

std::shared_ptr<MappedCold> CudaDevice::FindMapped(const ColdSide& cold) const {
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
  absl::Status status = hot_budget_->Prepare(
      plan, copy, progress,
      [this](const std::shared_ptr<const EpochTables>& tables) { return Publish(tables); });
  MeasureProcess();
  return status;
}

absl::Status CudaDevice::Retire(int64_t epoch) {
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaSetDevice(options_.device));
  absl::Status status = hot_budget_->Retire(
      epoch, [this](int32_t from, int32_t to) { return MoveBundle(from, to); },
      [this](const std::shared_ptr<const EpochTables>& tables) { return Publish(tables); });
  MeasureProcess();
  return status;
}

absl::Status CudaDevice::MoveBundle(int32_t from, int32_t to) {
  const auto at = [this](int32_t slot) {
    return pool_memory_->data() + slot * layout_.bundle_bytes;
  };
  return CudaStatus(cudaMemcpyAsync(at(to), at(from), static_cast<size_t>(layout_.bundle_bytes),
                                    cudaMemcpyDeviceToDevice, copy_stream_),
                    "moving a hot neuron");
}

absl::Status CudaDevice::Publish(const std::shared_ptr<const EpochTables>& tables) {
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(copy_stream_));
  return tables_->Add(tables, copy_stream_);
}

}  // namespace isotherm::gpu
