#include "gpu_worker/cuda/cuda_device.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <iterator>
#include <limits>
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

// What `sampling` draws next, or behind `ahead` others.
SampleRow SampleRowOf(const SamplingState& sampling, int32_t ahead = 0) {
  const std::optional<PlainDraw> draw = sampling.Plain(ahead);
  if (!draw.has_value()) return {};
  SampleRow out{.on_device = 1,
                .greedy = draw->greedy ? 1 : 0,
                .inverse_temperature = draw->inverse_temperature,
                .floor = draw->floor,
                .top_k = draw->top_k,
                .top_p = draw->top_p,
                .bits = draw->bits};
  for (const TokenId stop : sampling.stop_token_ids()) {
    if (out.num_stops < SampleRow::kMostStops) out.stops[out.num_stops++] = stop;
  }
  return out;
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
      graph_rows_(std::min(options.max_rows, kMaxGraphRows)),
      max_logits_(std::min(options.max_rows, kMaxLogits)),
      product_rows_(options.product_rows > 0 ? options.product_rows
                    : options.max_rows >= kPrefillRows && layout_.layer_bytes() >= kLargeLayer
                        ? kPrefillRowsOfLarge
                        : kPrefillRows),
      cuts_(static_cast<size_t>(config_.num_layers),
            CutController(layout_.num_neurons, options.streamed_share, kFirstShare, kCutGain,
                          kMostCutChange)) {
  if (options.streamed_share < 0)
    product_levels_.assign(std::size(kProductRows), ShareLevel(kFirstLevel));
}

CudaDevice::~CudaDevice() {
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  if (copy_stream_ != nullptr) cudaStreamSynchronize(copy_stream_);
  graph_.reset();
  for (const Place& place : places_) {
    if (place.done != nullptr) cudaEventDestroy(place.done);
  }
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
  if (copy_stream_ != nullptr) cudaStreamDestroy(copy_stream_);
}

// Bytes of stack for each thread that may be resident. The default of 1,024 takes 270 MB of an
// H200: a bare context is 543 MB with it and 336 with this (isotherm-probe --only context_limits).
// The kernels need up to 344; one that needs more than there is gets it when it is first launched,
// which is at the start.
constexpr size_t kStackBytes = 256;

// The context, as small as it can be made: no device heap, no printf buffer, small stacks.
absl::Status CudaDevice::Open() {
  AllowEarlyLaunch(options_.early_launch);
  ISOTHERM_RETURN_IF_ERROR(CheckUsable(options_.device));
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaSetDevice(options_.device));
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaSetDeviceFlags(cudaDeviceScheduleSpin | cudaDeviceMapHost));
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaDeviceSetLimit(cudaLimitMallocHeapSize, 0));
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaDeviceSetLimit(cudaLimitPrintfFifoSize, 0));
  cudaDeviceSetLimit(cudaLimitStackSize, kStackBytes);  // without it there is less to use
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

absl::Status CudaDevice::Check(const DeviceBatch& batch, bool follows) const {
  if (batch.rows.size() > static_cast<size_t>(options_.max_rows)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a step of ", batch.rows.size(), " rows; at most ", options_.max_rows));
  }
  for (const DeviceRow& row : batch.rows) {
    const bool sampled = follows && row.token == kSampledToken;
    if ((row.token < 0 && !sampled) || row.token >= config_.vocab_size || row.position < 0 ||
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

bool CudaDevice::Flight::traced() const {
  return std::any_of(layers.begin(), layers.end(),
                     [](const LayerStep& layer) { return (layer.flags & kLayerTrace) != 0; });
}

std::vector<int32_t> CudaDevice::AskedFlags(const DeviceBatch& batch, size_t num_layers) {
  std::vector<int32_t> out(num_layers);
  for (const LayerRange& range : batch.layers) {
    const int32_t flags = (range.mode == LayerMode::kExact ? kLayerExact : 0) |
                          (range.mode == LayerMode::kGpuOnly ? kLayerGpuOnly : 0) |
                          (range.trace ? kLayerTrace : 0);
    std::fill(out.begin() + range.first, out.begin() + range.last, flags);
  }
  return out;
}

void CudaDevice::FillLayers(Flight* flight) const {
  // With a level no id is below the cut of a step of products. Without an arena here every cold
  // neuron is the cpu side's.
  const bool by_level = flight->in_products && !product_levels_.empty();
  const bool arena = flight->mapped != nullptr && flight->mapped->layers() != nullptr;
  const int32_t flags =
      (flight->timed ? kLayerTrace : 0) | (flight->ring && !flight->shared ? kLayerGpuOnly : 0);
  flight->layers.resize(flight->asked_flags.size());
  for (size_t l = 0; l < flight->layers.size(); ++l) {
    flight->layers[l] = {.flags = flight->asked_flags[l] | flags,
                         .cut = !arena     ? static_cast<int32_t>(layout_.num_neurons)
                                : by_level ? 0
                                           : cuts_[l].cut()};
  }
}

void CudaDevice::FillInputs(const DeviceBatch& batch, const DeviceBatch* ahead, Flight* flight) {
  std::byte* const base = places_[flight->place].inputs.as<>();
  auto* const rows = reinterpret_cast<gpu::StepRow*>(base + input_layout_.rows);
  auto* const logit_rows = reinterpret_cast<int32_t*>(base + input_layout_.logit_rows);
  auto* const samples = reinterpret_cast<SampleRow*>(base + input_layout_.samples);
  auto* const pages = reinterpret_cast<int32_t*>(base + input_layout_.pages);
  const MappedCold* const cold = flight->mapped.get();
  const uint64_t nonce = flight->link != nullptr ? flight->link->hash_nonce() : 0;
  flight->num_logits = 0;
  flight->page_tables = 0;
  flight->host_samples = false;
  const int32_t* last_pages = nullptr;
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    const DeviceRow& row = batch.rows[r];
    // Rows of one sequence stand together and share one table, that of the last of them.
    if (row.pages.data() != last_pages) ++flight->page_tables;
    last_pages = row.pages.data();
    const auto used = static_cast<size_t>(row.position) / kPageSize + 1;
    std::memcpy(pages + (flight->page_tables - 1) * max_pages_, row.pages.data(),
                used * sizeof(int32_t));
    rows[r] = {.token = row.token,
               .position = row.position,
               .table = static_cast<int32_t>(flight->page_tables - 1),
               .exact = row.exact ? 1 : 0,
               .key = StepKey(nonce, static_cast<uint64_t>(batch.step_id),
                              static_cast<uint64_t>(batch.attempt), r)};
    if (row.sampling == nullptr) continue;
    const bool draws_ahead =
        ahead != nullptr &&
        std::any_of(ahead->rows.begin(), ahead->rows.end(),
                    [&](const DeviceRow& other) { return other.sampling == row.sampling; });
    samples[flight->num_logits] = SampleRowOf(*row.sampling, draws_ahead ? 1 : 0);
    if (samples[flight->num_logits].on_device == 0) flight->host_samples = true;
    logit_rows[flight->num_logits++] = static_cast<int32_t>(r);
  }
  FillLayers(flight);
  std::memcpy(base + input_layout_.layers, flight->layers.data(),
              flight->layers.size() * sizeof(LayerStep));
  flight->time =
      std::max(std::chrono::nanoseconds(0), std::chrono::duration_cast<std::chrono::nanoseconds>(
                                                batch.deadline - std::chrono::steady_clock::now()));
  StepHeader header{.num_rows = static_cast<int32_t>(batch.rows.size()),
                    .num_logits = flight->num_logits,
                    .max_pages = max_pages_,
                    .attempt = batch.attempt,
                    .follows = ahead != nullptr ? 1 : 0,
                    .number = flight->number,
                    .step_id = batch.step_id,
                    .epoch = batch.epoch,
                    .time_left_ns = flight->time.count(),
                    .tables = flight->tables,
                    .arena = cold != nullptr ? cold->layers() : nullptr};
  if (flight->ring) {
    header.ring = cold->ring();
    header.next_sequence = cold->slots()->next_sequence();
  }
  std::memcpy(base + input_layout_.header, &header, sizeof(header));
}

// Waits for the queued step, and meanwhile wakes a cpu side that sleeps: the device cannot.
absl::Status CudaDevice::AwaitStep(const Flight& flight, TimePoint deadline) {
  shm::SlotClient* const slots = flight.shared ? flight.mapped->slots() : nullptr;
  cudaError_t state = cudaSuccess;
  AwaitDevice(
      deadline,
      [&] { return (state = cudaEventQuery(places_[flight.place].done)) == cudaErrorNotReady; },
      [&] {
        if (slots != nullptr) slots->RingSleeper();
        if (ahead_ != nullptr && !ahead_->withdrawn && gate_.Wanted()) WithdrawAhead();
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

void CudaDevice::ObserveCuts(const Flight& flight) {
  const LayerTimes* const times = TimesOf(flight.place);
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

PrefillPass::Step CudaDevice::ProductStep(const DeviceBatch& batch, const Flight& flight) {
  PrefillPass::Step step{.rows = static_cast<int32_t>(batch.rows.size()),
                         .logits = flight.num_logits,
                         .page_tables = flight.page_tables,
                         .shared = flight.shared,
                         .layers = survey_};
  if (flight.shared && !product_levels_.empty()) step.level = &product_levels_[Bucket(step.rows)];
  if (flight.shared)
    step.while_waiting = [slots = flight.mapped->slots()] { slots->RingSleeper(); };
  // Early ones are worth it where a row's neurons are mostly another's, too.
  const bool early = activity_ * static_cast<double>(batch.rows.size()) >= kEarlyActivity;
  for (size_t l = 0; l < step.layers.size(); ++l) {
    const LayerStep& layer = flight.layers[l];
    const bool to_cpu = flight.shared && (layer.flags & kLayerGpuOnly) == 0;
    if (!early || (to_cpu && step.layers[l].top < layer.cut)) step.layers[l].num_top = 0;
    step.layers[l].arena = flight.mapped->arena()->Layer(static_cast<int64_t>(l)).data;
    step.layers[l].trace = (layer.flags & kLayerTrace) != 0;
  }
  return step;
}

absl::StatusOr<std::unique_ptr<CudaDevice::Flight>> CudaDevice::Plan(const DeviceBatch& batch,
                                                                     const ColdSide& cold) {
  auto flight = std::make_unique<Flight>();
  flight->epoch = hot_pool_->Find(batch.epoch);
  flight->tables = flight->epoch != nullptr ? tables_->Find(flight->epoch.get()) : nullptr;
  if (flight->tables == nullptr)
    return absl::AbortedError(absl::StrCat("epoch ", batch.epoch, " is not prepared here"));
  flight->mapped = FindMapped(cold);
  flight->link = cold.link != nullptr && cold.link->alive() ? cold.link : nullptr;
  if (flight->mapped == nullptr && (flight->link != nullptr || cold.arena != nullptr))
    return absl::FailedPreconditionError("a cold side that was not mapped for the device");
  flight->num_rows = static_cast<int32_t>(batch.rows.size());
  flight->num_exact = static_cast<int32_t>(std::count_if(
      batch.rows.begin(), batch.rows.end(), [](const DeviceRow& row) { return row.exact; }));
  flight->decode = !batch.rows.empty() &&
                   std::all_of(batch.rows.begin(), batch.rows.end(),
                               [](const DeviceRow& row) { return row.sampling != nullptr; });
  flight->in_products = InProducts(static_cast<int32_t>(batch.rows.size()), flight->mapped.get());
  flight->asked_flags = AskedFlags(batch, static_cast<size_t>(config_.num_layers));
  return flight;
}

absl::Status CudaDevice::Launch(const DeviceBatch& batch, const DeviceBatch* ahead,
                                Flight* flight) {
  const auto rows = static_cast<int32_t>(batch.rows.size());
  const MappedCold* const cold = flight->mapped.get();
  if (flight->in_products && (cold == nullptr || cold->layers() == nullptr)) {
    return absl::UnavailableError(absl::StrCat(
        "a step of ", rows, " rows reads neurons that are not mapped here; send at most ",
        graph_rows_, " rows, or attach a cpu_worker on this host"));
  }
  Survey(flight->epoch);
  flight->ring =
      flight->link != nullptr && cold->ring().base != nullptr &&
      (!flight->in_products || rows <= std::min(PrefillPass::kMostSharedRows, cold->max_rows()));
  // Without cold neurons there is nothing to post but the end, and nobody needs to be woken.
  flight->shared =
      flight->ring && std::any_of(survey_.begin(), survey_.end(),
                                  [](const PrefillPass::Layer& layer) { return layer.cold > 0; });
  if (flight->ring && ahead == nullptr)
    ISOTHERM_RETURN_IF_ERROR(cold->slots()->AwaitIdle(batch.deadline));
  flight->place = next_place_;
  next_place_ = 1 - next_place_;
  const Place& place = places_[flight->place];
  // Never 0, which is no step's.
  flight->number = last_number_ =
      last_number_ == std::numeric_limits<int32_t>::max() ? 1 : last_number_ + 1;
  FillInputs(batch, ahead, flight);
  if (options_.before_step) options_.before_step(stream_);
  ISOTHERM_CUDA_RETURN_IF_ERROR(
      cudaMemcpyAsync(const_cast<unsigned char*>(buffers_.inputs), place.inputs.as<void>(),
                      static_cast<size_t>(input_layout_.BytesFor(flight->page_tables)),
                      cudaMemcpyHostToDevice, stream_));
  if (flight->in_products) {
    ISOTHERM_RETURN_IF_ERROR(prefill_->Launch(ProductStep(batch, *flight), stream_));
  } else {
    ISOTHERM_RETURN_IF_ERROR(graph_->Launch(rows, flight->num_logits, stream_));
  }
  const auto copy_out = [&](const PinnedBytes& to, const void* from, int64_t bytes) {
    return CudaStatus(cudaMemcpyAsync(to.as<void>(), from, static_cast<size_t>(bytes),
                                      cudaMemcpyDeviceToHost, stream_),
                      "copying a step's results");
  };
  ISOTHERM_RETURN_IF_ERROR(
      copy_out(place.results, buffers_.state, StateBytes(config_.num_layers, flight->num_logits)));
  if (flight->host_samples) {
    ISOTHERM_RETURN_IF_ERROR(
        copy_out(logits_, buffers_.logits, flight->num_logits * config_.vocab_size * int64_t{4}));
  }
  if (flight->traced()) {
    ISOTHERM_RETURN_IF_ERROR(
        copy_out(place.traces, buffers_.traces,
                 config_.num_layers * static_cast<int64_t>(sizeof(LayerTrace))));
  }
  return CudaStatus(cudaEventRecord(place.done, stream_), "queueing a step");
}

absl::Status CudaDevice::Finish(const Flight& flight, TimePoint deadline) {
  ISOTHERM_RETURN_IF_ERROR(AwaitStep(flight, deadline));
  const StepState& state = StateOf(flight);
  if (flight.ring) {
    shm::SlotClient& slots = *flight.mapped->slots();
    slots.Resume(state.next_sequence);
    if (state.failure != kStepOk) slots.CancelPosted();
    slots.RingSleeper();
  }
  return StepStatus(state);
}

void CudaDevice::BeginNext(const DeviceBatch& batch, const ColdSide& cold, const Flight& flight) {
  const DeviceBatch* const next = batch.next;
  if (next == nullptr || next->rows.empty() || next->epoch != batch.epoch || flight.in_products ||
      gate_.Wanted() || !Check(*next, /*follows=*/true).ok()) {
    return;
  }
  for (size_t r = 0; r < next->rows.size(); ++r) {
    const DeviceRow& row = next->rows[r];
    // What the host samples it has to see first.
    if (row.sampling == nullptr || !row.sampling->Plain().has_value()) return;
    if (row.token == kSampledToken &&
        (r >= batch.rows.size() || !flight.decode || !batch.rows[r].sampling->Plain().has_value()))
      return;
  }
  absl::StatusOr<std::unique_ptr<Flight>> planned = Plan(*next, cold);
  if (!planned.ok() || (*planned)->in_products || (*planned)->link != flight.link ||
      (*planned)->mapped != flight.mapped)
    return;
  (*planned)->timed = (*planned)->decode && counters_->NextTimesDue();
  if (Launch(*next, &batch, planned->get()).ok()) ahead_ = *std::move(planned);
}

bool CudaDevice::IsAhead(const DeviceBatch& batch, const ColdSide& cold) const {
  const std::byte* const base = places_[ahead_->place].inputs.as<>();
  const auto& header = *reinterpret_cast<const StepHeader*>(base + input_layout_.header);
  const auto* const rows = reinterpret_cast<const gpu::StepRow*>(base + input_layout_.rows);
  const auto* const samples = reinterpret_cast<const SampleRow*>(base + input_layout_.samples);
  const auto* const pages = reinterpret_cast<const int32_t*>(base + input_layout_.pages);
  const ColdLink* const link = cold.link != nullptr && cold.link->alive() ? cold.link : nullptr;
  if (batch.step_id != header.step_id || batch.epoch != header.epoch ||
      batch.attempt != header.attempt ||
      batch.rows.size() != static_cast<size_t>(header.num_rows) || link != ahead_->link ||
      FindMapped(cold) != ahead_->mapped ||
      AskedFlags(batch, ahead_->asked_flags.size()) != ahead_->asked_flags) {
    return false;
  }
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    const DeviceRow& row = batch.rows[r];
    const int32_t token = rows[r].token >= 0 ? rows[r].token : TokensOf(1 - ahead_->place)[r];
    const auto used = static_cast<size_t>(row.position) / kPageSize + 1;
    const int32_t* const table = pages + rows[r].table * max_pages_;
    if (row.token != token || row.position != rows[r].position ||
        row.exact != (rows[r].exact != 0) || row.sampling == nullptr ||
        SampleRowOf(*row.sampling) != samples[r] || row.pages.size() < used ||
        !std::equal(table, table + used, row.pages.begin())) {
      return false;
    }
  }
  return true;
}

void CudaDevice::DropAhead() {
  if (ahead_ == nullptr) return;
  const std::unique_ptr<Flight> flight = std::move(ahead_);
  const absl::Status status = Finish(*flight, std::chrono::steady_clock::now() + flight->time);
  // The kernels have counted its neurons, so its rows count.
  if (status.ok()) CountRows(*flight);
}

void CudaDevice::WithdrawAhead() {
  std::atomic_ref<int32_t>(*withdrawn_.as<int32_t>()).store(ahead_->number);
  ahead_->withdrawn = true;
}

void CudaDevice::Settle() {
  DropAhead();
  in_gate_.reset();
}

absl::Status CudaDevice::RunStep(const DeviceBatch& batch, const ColdSide& cold,
                                 DeviceOutput* output) {
  *output = DeviceOutput();
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaSetDevice(options_.device));
  ISOTHERM_RETURN_IF_ERROR(Check(batch, /*follows=*/false));
  std::unique_ptr<Flight> flight;
  if (ahead_ != nullptr && IsAhead(batch, cold)) flight = std::move(ahead_);
  if (flight == nullptr) Settle();
  if (in_gate_ == nullptr) in_gate_ = std::make_unique<StepGate::Step>(gate_);
  absl::Status status = RunInGate(batch, cold, std::move(flight), output);
  if (!status.ok()) DropAhead();  // what followed failed with it
  output->next_begun = ahead_ != nullptr;
  if (ahead_ == nullptr) in_gate_.reset();
  return status;
}

absl::Status CudaDevice::RunInGate(const DeviceBatch& batch, const ColdSide& cold,
                                   std::unique_ptr<Flight> flight, DeviceOutput* output) {
  const bool launched = flight != nullptr;
  if (!launched) {
    ISOTHERM_ASSIGN_OR_RETURN(flight, Plan(batch, cold));
  }
  counters_->AddStep(batch.epoch, static_cast<int64_t>(batch.rows.size()), flight->decode);
  ColdLink* const link = flight->link;
  if (batch.rows.empty()) {
    if (link == nullptr) return absl::OkStatus();
    return link->EndOfStep(batch.step_id, batch.epoch, batch.attempt, batch.deadline);
  }
  absl::Status status;
  if (!launched) {
    flight->timed = counters_->TimesDue();
    status = Launch(batch, nullptr, flight.get());
  }
  if (status.ok()) {
    BeginNext(batch, cold, *flight);
    status = Finish(*flight, batch.deadline);
  }
  if (flight->withdrawn && StateOf(*flight).failure == kStepNotBegun) {
    // Who waits goes first, and may change what the step was planned with.
    flight.reset();
    in_gate_.reset();
    in_gate_ = std::make_unique<StepGate::Step>(gate_);
    ISOTHERM_ASSIGN_OR_RETURN(flight, Plan(batch, cold));
    flight->timed = counters_->TimesDue();
    status = Launch(batch, nullptr, flight.get());
    if (status.ok()) {
      BeginNext(batch, cold, *flight);
      status = Finish(*flight, batch.deadline);
    }
  }
  if (!status.ok() && link != nullptr && !link->alive() && cold.arena != nullptr &&
      (absl::IsUnavailable(status) || absl::IsInternal(status)) &&
      cudaPeekAtLastError() == cudaSuccess) {
    // The cpu_worker was lost: the whole step again, its neurons from the arena.
    DropAhead();
    output->cpu_recomputed = true;
    flight->link = nullptr;
    status = Launch(batch, nullptr, flight.get());
    if (status.ok()) status = Finish(*flight, batch.deadline);
  }
  ISOTHERM_RETURN_IF_ERROR(status);
  const StepState& state = StateOf(*flight);
  output->owed_hash = state.owed_hash;
  output->work_hash = state.work_hash;
  output->active_neurons = state.active_neurons;
  output->hot_neurons = state.hot_neurons;
  output->open_neurons = state.open_neurons;
  activity_ = static_cast<double>(state.active_neurons) /
              (static_cast<double>(batch.rows.size()) *
               static_cast<double>(layout_.num_neurons * layout_.num_layers));
  if (flight->shared && !flight->in_products) ObserveCuts(*flight);  // products learn as they go
  if (flight->link != nullptr) {
    if (!flight->ring)
      status = link->EndOfStep(batch.step_id, batch.epoch, batch.attempt, batch.deadline);
    if (!status.ok() && link->alive()) return status;
    if (!link->alive()) {  // it may not report this step; its results were accepted one by one
      output->cpu_recomputed = true;
      output->work_hash += state.cold_hash;
    }
  }
  Count(*flight, output);
  return Sample(batch, *flight, output);
}

}  // namespace isotherm::gpu
