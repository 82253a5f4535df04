#include "gpu_worker/host/host_device.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/checked_math.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "common/kernels/convert.h"
#include "common/kernels/work_hash.h"
#include "hwy/targets.h"

namespace isotherm::gpu {
namespace {

float MicrosSince(TimePoint start) {
  return std::chrono::duration<float, std::micro>(std::chrono::steady_clock::now() - start).count();
}

StepShape ShapeOf(const ModelConfig& config, const HostWeights& weights, int32_t max_rows) {
  int64_t max_rank = 0;
  for (const HostWeights::Layer& layer : weights.layers)
    max_rank = std::max(max_rank, layer.fc1.rows);
  return {.max_rows = max_rows,
          .model_dim = config.model_dim,
          .q_dim = config.num_q_heads * config.head_dim,
          .kv_dim = config.num_kv_heads * config.head_dim,
          .ffn_dim = config.ffn_dim,
          .max_rank = max_rank,
          .rope_half = config.rope_dims / 2};
}

// Whole pages within are the system's again until they are written to.
void GiveBack(std::span<std::byte> bytes) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto start = reinterpret_cast<uintptr_t>(bytes.data());
  const uintptr_t first = RoundUp(start, page), last = (start + bytes.size()) / page * page;
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

void AddTo(float* sums, const float* more, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sums[i] += more[i];
}

}  // namespace

struct HostDevice::StepState {
  const DeviceBatch& batch;
  DeviceOutput& output;
  std::shared_ptr<const EpochTables> tables;  // pins the epoch
  int64_t num_rows = 0;
  int64_t exact_rows = 0;
  bool decode = false;       // every row samples
  uint64_t cold_hash = 0;    // of the cpu_worker's accepted results
  ColdLink* link = nullptr;  // null from the moment it was lost
  NeuronHash hash;           // of the running layer
};

absl::StatusOr<std::unique_ptr<HostDevice>> HostDevice::Create(
    const ModelFile& model, const HostDeviceOptions& options,
    const std::function<void(double)>& progress) {
  const ModelConfig& config = model.config();
  if (options.max_rows < 1 || options.kv_pages < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_rows=", options.max_rows, " and kv_pages=", options.kv_pages, " must be at least 1"));
  }
  if (config.head_dim % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("head_dim=", config.head_dim, "; rotary pairs need an even one"));
  }
  ISOTHERM_ASSIGN_OR_RETURN(HostWeights weights, HostWeights::Load(model, progress));
  int64_t kv_bytes = int64_t{2} * sizeof(uint16_t) * kPageSize;
  for (const int64_t factor :
       {int64_t{options.kv_pages}, config.num_layers, config.num_kv_heads, config.head_dim}) {
    ISOTHERM_ASSIGN_OR_RETURN(kv_bytes, CheckedMul(kv_bytes, factor));
  }
  AlignedBytes kv(static_cast<size_t>(kv_bytes));
  if (kv.data() == nullptr) {
    return WithExitCode(
        absl::ResourceExhaustedError(absl::StrCat("the KV cache needs ", FormatBytes(kv_bytes),
                                                  "; lower --context or --parallel")),
        ExitCode::kShortage);
  }
  const int threads = options.num_threads > 0 ? options.num_threads : DefaultThreadCount();
  ISOTHERM_ASSIGN_OR_RETURN(std::unique_ptr<SparseFfnWorkspace> workspace,
                            SparseFfnWorkspace::Create({.num_threads = threads,
                                                        .max_rows = options.max_rows,
                                                        .model_dim = config.model_dim,
                                                        .num_neurons = config.ffn_dim}));
  std::unique_ptr<HostDevice> device(
      new HostDevice(model, std::move(weights), options, std::move(kv), std::move(workspace)));
  if (device->hot_storage_.data() == nullptr) {
    return WithExitCode(
        absl::ResourceExhaustedError(absl::StrCat(
            "the hot pool needs ", FormatBytes(static_cast<int64_t>(device->hot_storage_.size())),
            " of memory; lower --vram-budget")),
        ExitCode::kShortage);
  }
  return device;
}

HostDevice::HostDevice(const ModelFile& model, HostWeights weights,
                       const HostDeviceOptions& options, AlignedBytes kv,
                       std::unique_ptr<SparseFfnWorkspace> workspace)
    : model_(model),
      config_(model.config()),
      layout_(model.bundle_layout()),
      options_(options),
      bf16_(layout_.dtype == DType::kBF16),
      weights_(std::move(weights)),
      // Host memory is taken by the page when a slot is first written, so the room for a second
      // epoch costs nothing idle.
      hot_pool_(layout_, options.hot_capacity_bytes / layout_.bundle_bytes,
                2 * (options.hot_capacity_bytes / layout_.bundle_bytes)),
      hot_storage_(static_cast<size_t>(hot_pool_.physical_slots() * layout_.bundle_bytes)),
      kv_(std::move(kv)),
      kv_pages_named_(options.kv_pages),
      pool_({.num_threads = workspace->limits().num_threads, .name = "gpu-host"}),
      workspace_(std::move(workspace)),
      rope_(config_.rope_dims, config_.rope_freq_base, config_.rope_scale, weights_.rope_freqs),
      buffers_(ShapeOf(config_, weights_, options.max_rows)),
      dense_(config_, bf16_, config_.context_length, buffers_, pool_),
      logits_(config_, bf16_, weights_, pool_),
      policies_(static_cast<size_t>(config_.num_layers)),
      counters_(config_.num_layers, config_.ffn_dim, /*predicted=*/true),
      balance_(config_.num_layers, config_.ffn_dim) {
  for (int32_t r = 0; r < options_.max_rows; ++r) row_keys_.push_back(r);
  if (options_.poison_freed) {
    hot_pool_.SetOnFreed([this](int32_t slot) {
      std::memset(HotSlot(slot), 0xff, static_cast<size_t>(layout_.bundle_bytes));
    });
  }
  if (config_.learned_positions) position_row_.resize(static_cast<size_t>(config_.model_dim));
}

DeviceInfo HostDevice::Describe() const {
  return {
      .name = "cpu",
      .isa = hwy::TargetName(hwy::SupportedTargets() & -hwy::SupportedTargets()),
      .threads = pool_.num_threads(),
      .hot_capacity_bytes = hot_pool_.capacity_bytes(),
      .hot_free_bytes = std::max<int64_t>(0, hot_pool_.capacity_bytes() - hot_pool_.used_bytes()),
      .hot_used_bytes = hot_pool_.used_bytes(),
      .hot_spare_bytes = hot_pool_.spare_bytes(),
      .kv_pages = options_.kv_pages,
      .max_rows = options_.max_rows,
      .shares_memory = true,
      .memory = {.kv = static_cast<int64_t>(kv_.size()), .hot_pool = hot_pool_.extent_bytes()}};
}

absl::Status HostDevice::Prepare(const PlacementPlan& plan, const NeuronStore* source,
                                 const std::function<void(int64_t, int64_t)>& progress) {
  const auto bytes = static_cast<size_t>(layout_.bundle_bytes);
  // A file may have to be transposed to reach one neuron, so whole layers are packed.
  AlignedBytes packed;
  int64_t packed_layer = -1;
  const auto pack = [&](int64_t layer) -> absl::Status {
    if (packed_layer == layer) return absl::OkStatus();
    packed_layer = -1;
    if (packed.data() == nullptr) packed = AlignedBytes(static_cast<size_t>(layout_.layer_bytes()));
    if (packed.data() == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat("moving neurons needs ", FormatBytes(layout_.layer_bytes()), " of memory"));
    }
    ISOTHERM_RETURN_IF_ERROR(model_.PackBundles(layer, 0, layout_.num_neurons, packed.span()));
    packed_layer = layer;
    return absl::OkStatus();
  };
  const auto bundle = [&](int64_t layer, int64_t neuron) {
    return source != nullptr ? source->Layer(layer).data + neuron * layout_.bundle_bytes
                             : packed.data() + neuron * layout_.bundle_bytes;
  };
  return hot_pool_.Prepare(
      plan,
      [&](int64_t layer, int64_t neuron, int32_t slot) -> absl::Status {
        if (source == nullptr) ISOTHERM_RETURN_IF_ERROR(pack(layer));
        std::memcpy(HotSlot(slot), bundle(layer, neuron), bytes);
        return absl::OkStatus();
      },
      progress, {},
      [&](int64_t layer, int64_t neuron, int32_t slot) {
        return std::memcmp(HotSlot(slot), bundle(layer, neuron), bytes) == 0;
      });
}

absl::Status HostDevice::Retire(int64_t epoch) {
  ISOTHERM_RETURN_IF_ERROR(hot_pool_.Retire(epoch));
  absl::Status compacted = hot_pool_.Compact([this](int32_t from, int32_t to) {
    std::memcpy(HotSlot(to), HotSlot(from), static_cast<size_t>(layout_.bundle_bytes));
    return absl::OkStatus();
  });
  trim_due_.store(true);
  TrimHotMemory();
  return compacted;
}

// What is behind the last slot in use is given back.
void HostDevice::TrimHotMemory() {
  if (!trim_due_.load()) return;
  const bool all = hot_pool_.Trim([&](int64_t slots) {
    GiveBack(hot_storage_.span().subspan(static_cast<size_t>(slots * layout_.bundle_bytes)));
  });
  if (all) trim_due_.store(false);
}

void HostDevice::SetShares(int64_t hot_capacity_bytes, int32_t kv_pages) {
  hot_pool_.SetCapacity(hot_capacity_bytes / layout_.bundle_bytes);
  const int32_t named = std::clamp(kv_pages, 0, options_.kv_pages);
  if (const int32_t before = std::exchange(kv_pages_named_, named); named < before) {
    const int64_t page_bytes =
        int64_t{sizeof(uint16_t)} * kPageSize * config_.num_kv_heads * config_.head_dim;
    for (int64_t half = 0; half < 2 * config_.num_layers; ++half) {  // keys, values
      GiveBack(
          kv_.span().subspan(static_cast<size_t>((half * options_.kv_pages + named) * page_bytes),
                             static_cast<size_t>((before - named) * page_bytes)));
    }
  }
}

KvLayerView HostDevice::KvLayer(int64_t layer) {
  const int64_t layer_elements =
      int64_t{options_.kv_pages} * kPageSize * config_.num_kv_heads * config_.head_dim;
  auto* base = reinterpret_cast<uint16_t*>(kv_.data());
  return {.keys = base + 2 * layer * layer_elements,
          .values = base + (2 * layer + 1) * layer_elements,
          .num_kv_heads = config_.num_kv_heads,
          .head_dim = config_.head_dim,
          .bf16 = bf16_};
}

// Everything that indexes memory later; sets the layers' policies.
absl::Status HostDevice::Check(const DeviceBatch& batch) {
  if (batch.rows.size() > static_cast<size_t>(options_.max_rows)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a step of ", batch.rows.size(), " rows; at most ", options_.max_rows));
  }
  for (const DeviceRow& row : batch.rows) {
    if (row.token < 0 || row.token >= config_.vocab_size || row.position < 0 ||
        row.position >= config_.context_length ||
        static_cast<size_t>(row.position / kPageSize) >= row.pages.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("row with token ", row.token, " at position ", row.position, " and ",
                       row.pages.size(), " pages; the vocabulary has ", config_.vocab_size,
                       ", the context ", config_.context_length));
    }
    for (int32_t p = 0; p <= row.position / kPageSize; ++p) {
      const int32_t page = row.pages[static_cast<size_t>(p)];
      if (page < 0 || page >= kv_pages_named_) {
        return absl::InvalidArgumentError(
            absl::StrCat("row with page ", page, "; the pool has ", kv_pages_named_));
      }
    }
  }
  std::fill(policies_.begin(), policies_.end(), LayerPolicy());
  for (const LayerRange& range : batch.layers) {
    if (range.first < 0 || range.last < range.first || range.last > config_.num_layers) {
      return absl::InvalidArgumentError(absl::StrCat("layers ", range.first, " to ", range.last,
                                                     "; the model has ", config_.num_layers));
    }
    std::fill(policies_.begin() + range.first, policies_.begin() + range.last,
              LayerPolicy{range.mode, range.trace});
  }
  return absl::OkStatus();
}

void HostDevice::Embed(const DeviceBatch& batch) {
  const Matrix& embedding = weights_.embedding;
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    const DeviceRow& row = batch.rows[r];
    const auto at = static_cast<int64_t>(r);
    const absl::Status status = DecodeRow(
        embedding.dtype, embedding.data() + row.token * embedding.row_bytes, embedding.row_bytes,
        std::span(buffers_.x.data() + at * config_.model_dim,
                  static_cast<size_t>(config_.model_dim)));
    ISOTHERM_CHECK(status.ok());  // type and shape were validated while loading
    if (config_.learned_positions)
      AddPosition(row.position, buffers_.x.data() + at * config_.model_dim);
    rope_.Angles(row.position, buffers_.rope_cos.data() + at * rope_.half(),
                 buffers_.rope_sin.data() + at * rope_.half());
  }
}

void HostDevice::AddPosition(int32_t position, float* x) {
  const Matrix& table = weights_.positions;
  const int64_t row = position + config_.position_offset;
  const std::span<float> values(position_row_.data(), position_row_.size());
  const absl::Status status =
      DecodeRow(table.dtype, table.data() + row * table.row_bytes, table.row_bytes, values);
  ISOTHERM_CHECK(status.ok());  // as the embedding
  AddTo(x, values.data(), config_.model_dim);
}

absl::Status HostDevice::ComputeOwned(const OwnWork& work, StepState& step) {
  const std::vector<float>& up_bias = weights_.layers[static_cast<size_t>(work.layer)].up_bias;
  uint64_t hash = 0;
  ISOTHERM_RETURN_IF_ERROR(
      SparseFfn({.bundles = work.bundles,
                 .z = buffers_.z.data(),
                 .num_rows = step.num_rows,
                 .active = buffers_.active.data(),
                 .owned = work.owned,
                 .first_neuron = work.first,
                 .last_neuron = work.last,
                 .activation = config_.activation,
                 .activate_up = config_.activate_up,
                 .up_bias = up_bias.empty() ? nullptr : up_bias.data(),
                 .partial = work.partial,
                 .hash = hash_work_ ? &step.hash : nullptr,
                 .work_hash = hash_work_ ? &hash : nullptr,
                 .fired = count_neurons_ ? counters_.fired(work.layer) : nullptr,
                 .workspace = workspace_.get(),
                 // Threads of both workers on one core would only take turns.
                 .max_threads = work.shared ? std::max(1, pool_.num_threads() / 2) : 0},
                pool_));
  step.output.work_hash += hash;
  const SparseFfnCounts counts = CountsOf(*workspace_);
  step.output.open_neurons += counts.open_pairs;
  *work.bytes_read += static_cast<uint64_t>(counts.BytesRead(work.bundles));
  return absl::OkStatus();
}

absl::Status HostDevice::RunNeurons(int64_t layer, const DenseSection::Output& active,
                                    const ColdSide& cold, StepState& step, LayerTiming& timing) {
  const EpochTables::Layer& table = step.tables->layers[static_cast<size_t>(layer)];
  const bool gpu_only = policies_[static_cast<size_t>(layer)].mode == LayerMode::kGpuOnly;
  const bool any_hot = active.hot_together > 0;
  const bool any_cold = active.active_together > active.hot_together;
  const bool share = any_cold && step.link != nullptr && !gpu_only;
  // Cold ids from the cut on are computed here, as long as they can be read here; 0: all of them.
  const int64_t cut =
      share && cold.arena != nullptr
          ? balance_.Cut(layer, buffers_.active.data(), step.num_rows, table.cold.data())
          : config_.ffn_dim;

  OwnCosts own;
  bool posted = false;
  TimePoint start = std::chrono::steady_clock::now();
  if (share && cut > 0) {
    absl::Status status = step.link->Post({.step_id = step.batch.step_id,
                                           .epoch = step.batch.epoch,
                                           .layer = static_cast<int32_t>(layer),
                                           .attempt = step.batch.attempt,
                                           .num_rows = static_cast<int32_t>(step.num_rows),
                                           .cut = static_cast<int32_t>(cut),
                                           .z = buffers_.z16.data(),
                                           .active = buffers_.active.data(),
                                           .row_keys = row_keys_.data(),
                                           .deadline = step.batch.deadline});
    posted = status.ok();
    if (!posted && step.link->alive()) return status;
    timing.post_us = MicrosSince(start);
  }
  start = std::chrono::steady_clock::now();
  if (any_hot) {
    const BundleView bundles{.dtype = layout_.dtype,
                             .rows = layout_.rows,
                             .model_dim = layout_.model_dim,
                             .row_bytes = layout_.row_bytes,
                             .bundle_bytes = layout_.bundle_bytes,
                             .data = hot_storage_.data(),
                             .slot_of = table.slot_of.data(),
                             .num_neurons = layout_.num_neurons};
    ISOTHERM_RETURN_IF_ERROR(ComputeOwned({.layer = layer,
                                           .bundles = bundles,
                                           .owned = table.hot.data(),
                                           .last = config_.ffn_dim,
                                           .shared = posted,
                                           .partial = buffers_.hot_partial.data(),
                                           .bytes_read = &own.hot_bytes},
                                          step));
  }
  own.hot_us = MicrosSince(start);
  if (cut < config_.ffn_dim) {
    ISOTHERM_RETURN_IF_ERROR(ComputeOwned({.layer = layer,
                                           .bundles = cold.arena->Layer(layer),
                                           .owned = table.cold.data(),
                                           .first = cut,
                                           .last = config_.ffn_dim,
                                           .shared = posted,
                                           .partial = buffers_.cut_partial.data(),
                                           .bytes_read = &own.cold_bytes},
                                          step));
  }
  timing.gpu_us = MicrosSince(start);

  const float* cold_sums = nullptr;
  if (posted) {
    start = std::chrono::steady_clock::now();
    const absl::StatusOr<ColdResult> result = step.link->Wait(step.batch.deadline);
    timing.wait_us = MicrosSince(start);
    if (result.ok()) {
      cold_sums = result->partial;
      step.cold_hash += result->work_hash;
      timing.cpu_us = result->compute_us;
      balance_.Learn(layer, step.num_rows,
                     {.own_us = timing.gpu_us,
                      .wait_us = result->was_ready ? 0 : timing.wait_us,
                      .cold_us = timing.cpu_us});
    } else if (step.link->alive()) {
      return result.status();
    }
  }
  if (any_cold && cut > 0 && cold_sums == nullptr) {
    // The cpu_worker is not there, is not wanted, or was lost in this very layer.
    if (cold.arena == nullptr) {
      return absl::UnavailableError(
          "cold neurons are active and the cpu_worker is not attached; try again soon");
    }
    start = std::chrono::steady_clock::now();
    ISOTHERM_RETURN_IF_ERROR(ComputeOwned({.layer = layer,
                                           .bundles = cold.arena->Layer(layer),
                                           .owned = table.cold.data(),
                                           .last = cut,
                                           .partial = buffers_.cold_partial.data(),
                                           .bytes_read = &own.cold_bytes},
                                          step));
    timing.gpu_us += MicrosSince(start);
    if (step.link != nullptr && !step.link->alive()) {
      step.link = nullptr;
      step.output.cpu_recomputed = true;
    }
    cold_sums = buffers_.cold_partial.data();
  }

  start = std::chrono::steady_clock::now();
  const int64_t count = step.num_rows * config_.model_dim;
  if (any_hot) AddTo(buffers_.x.data(), buffers_.hot_partial.data(), count);
  if (cut < config_.ffn_dim) AddTo(buffers_.x.data(), buffers_.cut_partial.data(), count);
  if (cold_sums != nullptr) AddTo(buffers_.x.data(), cold_sums, count);
  // Here alone, once, whoever computed the neurons and even if none was active.
  const std::vector<float>& down_bias = weights_.layers[static_cast<size_t>(layer)].down_bias;
  if (!down_bias.empty()) {
    for (int64_t r = 0; r < step.num_rows; ++r)
      AddTo(buffers_.x.data() + r * config_.model_dim, down_bias.data(), config_.model_dim);
  }
  timing.merge_us = MicrosSince(start);
  CountLayer(layer, timing, own, step);
  return absl::OkStatus();
}

void HostDevice::CountLayer(int64_t layer, const LayerTiming& timing, const OwnCosts& own,
                            const StepState& step) {
  if (!count_neurons_) return;
  const auto nanos = [](float micros) { return static_cast<uint64_t>(micros * 1000.0f); };
  const bool exact = policies_[static_cast<size_t>(layer)].mode == LayerMode::kExact;
  LayerCounters counts{.cold_bytes = own.cold_bytes};
  const auto rows = static_cast<uint64_t>(step.num_rows);
  counts.exact_tokens = !config_.sparse ? 0 : exact ? rows : static_cast<uint64_t>(step.exact_rows);
  counts.tokens = rows - counts.exact_tokens;
  // Exact rows would pass for expensive ones.
  if (step.decode && counts.exact_tokens == 0) {
    counts.timed_steps = 1;
    counts.gpu_ns = nanos(own.hot_us);
    counts.cpu_ns = nanos(timing.cpu_us);
    counts.wait_ns = nanos(timing.gpu_us - own.hot_us + timing.wait_us);
    counts.merge_ns = nanos(timing.merge_us);
    counts.hot_bytes = own.hot_bytes;
    counts.timed_cold_bytes = own.cold_bytes;
  }
  counters_.AddLayer(layer, counts);
}

absl::Status HostDevice::RunLayer(int64_t layer, const ColdSide& cold, StepState& step) {
  const LayerPolicy& policy = policies_[static_cast<size_t>(layer)];
  const EpochTables::Layer& table = step.tables->layers[static_cast<size_t>(layer)];
  step.hash = {.layer_seed =
                   LayerSeed(static_cast<uint64_t>(step.batch.epoch), static_cast<uint64_t>(layer)),
               .row_keys = hash_work_ ? buffers_.step_keys.data() : nullptr};
  const TimePoint start = std::chrono::steady_clock::now();
  const DenseSection::Output active =
      dense_.Run({.layer = &weights_.layers[static_cast<size_t>(layer)],
                  .kv = KvLayer(layer),
                  .rows = step.batch.rows,
                  .exact = policy.mode == LayerMode::kExact,
                  .hash = step.hash,
                  .hot = table.hot.data(),
                  .predicted = count_neurons_ ? counters_.predicted(layer) : nullptr});
  step.output.owed_hash += active.owed_hash;
  step.output.active_neurons += active.active_neurons;
  step.output.hot_neurons += active.hot_neurons;
  LayerTiming timing{.layer = static_cast<int32_t>(layer),
                     .attention_us = MicrosSince(start),
                     .active_neurons = static_cast<int32_t>(active.active_together),
                     .hot_neurons = static_cast<int32_t>(active.hot_together)};
  ISOTHERM_RETURN_IF_ERROR(RunNeurons(layer, active, cold, step, timing));
  if (policy.trace) step.output.timings.push_back(timing);
  return absl::OkStatus();
}

absl::Status HostDevice::RunStep(const DeviceBatch& batch, const ColdSide& cold,
                                 DeviceOutput* output) {
  *output = DeviceOutput();
  TrimHotMemory();  // what the step before held may be free now
  StepState step{.batch = batch,
                 .output = *output,
                 .tables = hot_pool_.Find(batch.epoch),
                 .num_rows = static_cast<int64_t>(batch.rows.size())};
  if (step.tables == nullptr)
    return absl::AbortedError(absl::StrCat("epoch ", batch.epoch, " is not prepared here"));
  ISOTHERM_RETURN_IF_ERROR(Check(batch));
  step.link = cold.link != nullptr && cold.link->alive() ? cold.link : nullptr;
  const uint64_t nonce = step.link != nullptr ? step.link->hash_nonce() : 0;
  for (int64_t r = 0; r < step.num_rows; ++r) {
    buffers_.step_keys[static_cast<size_t>(r)] =
        StepKey(nonce, static_cast<uint64_t>(batch.step_id), static_cast<uint64_t>(batch.attempt),
                static_cast<uint64_t>(r));
  }
  step.decode = step.num_rows > 0;
  for (const DeviceRow& row : batch.rows) {
    step.exact_rows += row.exact ? 1 : 0;
    step.decode &= row.sampling != nullptr;
  }
  counters_.AddStep(batch.epoch, step.decode ? step.num_rows : 0);
  if (step.num_rows > 0) {
    Embed(batch);
    for (int64_t layer = 0; layer < config_.num_layers; ++layer)
      ISOTHERM_RETURN_IF_ERROR(RunLayer(layer, cold, step));
  }
  if (step.link != nullptr) {
    absl::Status status =
        step.link->EndOfStep(batch.step_id, batch.epoch, batch.attempt, batch.deadline);
    if (!status.ok() && step.link->alive()) return status;
    if (!status.ok()) output->cpu_recomputed = true;  // it will not report this step
  }
  // A peer that was lost cannot report what it did before; its results were accepted layer by
  // layer.
  if (output->cpu_recomputed) output->work_hash += step.cold_hash;
  return logits_.Run(batch.rows, buffers_.x.data(), &output->samples);
}

}  // namespace isotherm::gpu
