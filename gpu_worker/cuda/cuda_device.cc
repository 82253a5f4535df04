#include "gpu_worker/cuda/cuda_device.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/kernels/work_hash.h"
#include "common/shm/slot_client.h"
#include "gpu_worker/cuda/driver_memory.h"
#include "gpu_worker/engine/device_wait.h"
#include "gpu_worker/kv_page.h"

namespace isotherm::gpu {
namespace {

// A step of more rows than the graph serves is a prefill pass; so are smaller ones, if the neurons'
// memory is mapped: in a large model from where reading each weight once for all rows saves more
// than the many launches cost. A device made for few rows does without: products take memory of
// their own.
constexpr int32_t kMaxGraphRows = 64;
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
      graph_rows_(std::min(options.max_rows, kMaxGraphRows)),
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
  ISOTHERM_RETURN_IF_ERROR(CheckUsable(options_.device));
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
  ISOTHERM_ASSIGN_OR_RETURN(memory_.context, UsedDeviceMemory(options_.device));
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
  cudaError_t state = cudaSuccess;
  AwaitDevice(
      deadline, [&] { return (state = cudaStreamQuery(stream_)) == cudaErrorNotReady; },
      [&] {
        if (slots != nullptr) slots->RingSleeper();
      });
  return CudaStatus(state, "a step");
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
  if (options_.before_step) options_.before_step(stream_);
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
  const StepGate::Step step(gate_);  // outlives what this step holds of the epoch
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
