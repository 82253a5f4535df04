#include "gpu_worker/host/host_device.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/checked_math.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "common/kernels/convert.h"
#include "common/kernels/matmul.h"
#include "common/kernels/predictor.h"
#include "common/kernels/work_hash.h"
#include "hwy/targets.h"

namespace isotherm::gpu {
namespace {

struct Slice {
  int64_t first, last;
};

// Share of thread t of `count` items, cut at multiples of `tile`.
Slice Share(int64_t count, int64_t tile, int t, int num_threads) {
  const int64_t tiles = CeilDiv<int64_t>(count, tile);
  return {std::min(count, tiles * t / num_threads * tile),
          std::min(count, tiles * (t + 1) / num_threads * tile)};
}

float MicrosSince(TimePoint start) {
  return std::chrono::duration<float, std::micro>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

struct HostDevice::StepState {
  const DeviceBatch& batch;
  DeviceOutput& output;
  std::shared_ptr<const EpochTables> tables;
  int64_t num_rows = 0;
  uint64_t nonce = 0;
  uint64_t cold_hash = 0;  // of the cpu_worker's accepted results
  ColdLink* link = nullptr;
  bool predict = false;  // some row wants the predicted neurons alone
  NeuronHash hash;
};

absl::StatusOr<std::unique_ptr<HostDevice>> HostDevice::Create(
    const ModelFile& model, const HostDeviceOptions& options,
    const std::function<void(double)>& progress) {
  if (options.max_rows < 1 || options.kv_pages < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_rows=", options.max_rows, " and kv_pages=", options.kv_pages, " must be at least 1"));
  }
  ISOTHERM_ASSIGN_OR_RETURN(HostWeights weights, HostWeights::Load(model, progress));
  std::unique_ptr<HostDevice> device(new HostDevice(model, std::move(weights), options));
  const ModelConfig& config = model.config();
  ISOTHERM_ASSIGN_OR_RETURN(device->workspace_,
                            SparseFfnWorkspace::Create({.num_threads = device->pool_.num_threads(),
                                                        .max_rows = options.max_rows,
                                                        .model_dim = config.model_dim,
                                                        .num_neurons = config.ffn_dim}));
  const int64_t kv_bytes = int64_t{4} * config.num_layers * options.kv_pages * kPageSize *
                           config.num_kv_heads * config.head_dim;
  device->kv_ = AlignedBytes(static_cast<size_t>(kv_bytes));
  if (device->kv_.data() == nullptr) {
    return WithExitCode(
        absl::ResourceExhaustedError(absl::StrCat("the KV cache needs ", FormatBytes(kv_bytes),
                                                  "; lower --context or --parallel")),
        ExitCode::kShortage);
  }
  return device;
}

HostDevice::HostDevice(const ModelFile& model, HostWeights weights,
                       const HostDeviceOptions& options)
    : model_(model),
      config_(model.config()),
      layout_(model.bundle_layout()),
      weights_(std::move(weights)),
      options_(options),
      hot_pool_(layout_, options.hot_capacity_bytes),
      pool_({.num_threads = options.num_threads, .name = "gpu-host"}),
      barrier_(pool_.num_threads()) {
  bf16_ = layout_.dtype == DType::kBF16;
  words_ = CeilDiv<int64_t>(config_.ffn_dim, 64);
  for (const HostWeights::Layer& layer : weights_.layers)
    max_rank_ = std::max(max_rank_, layer.fc1.rows);
  const auto rows = static_cast<size_t>(options_.max_rows);
  const auto dim = static_cast<size_t>(config_.model_dim);
  const auto q_dim = static_cast<size_t>(config_.num_q_heads * config_.head_dim);
  const auto kv_dim = static_cast<size_t>(config_.num_kv_heads * config_.head_dim);
  for (std::vector<float>* buffer : {&x_, &h_, &z_, &hot_partial_, &cold_partial_})
    buffer->resize(rows * dim);
  for (std::vector<float>* buffer : {&q_, &attention_}) buffer->resize(rows * q_dim);
  for (std::vector<float>* buffer : {&k_, &v_}) buffer->resize(rows * kv_dim);
  hidden_.resize(rows * static_cast<size_t>(max_rank_));
  if (config_.sparse) scores_.resize(rows * static_cast<size_t>(config_.ffn_dim));
  thread_h_.assign(static_cast<size_t>(pool_.num_threads()), std::vector<float>(dim));
  z16_.resize(rows * dim);
  active_.resize(rows * static_cast<size_t>(words_));
  rope_cos_.resize(rows * static_cast<size_t>(config_.rope_dims / 2));
  rope_sin_.resize(rope_cos_.size());
  attention_scratch_.assign(static_cast<size_t>(pool_.num_threads()),
                            std::vector<float>(static_cast<size_t>(config_.context_length)));
  row_keys_.resize(rows);
  step_keys_.resize(rows);
  for (size_t r = 0; r < rows; ++r) row_keys_[r] = static_cast<int32_t>(r);
}

DeviceInfo HostDevice::Describe() const {
  return {
      .name = "cpu",
      .isa = hwy::TargetName(hwy::SupportedTargets() & -hwy::SupportedTargets()),
      .threads = pool_.num_threads(),
      .hot_capacity_bytes = hot_pool_.capacity_bytes(),
      .hot_free_bytes = std::max<int64_t>(0, hot_pool_.capacity_bytes() - hot_pool_.used_bytes()),
      .kv_pages = options_.kv_pages,
      .max_rows = options_.max_rows};
}

absl::Status HostDevice::Prepare(const PlacementPlan& plan,
                                 const std::function<void(int64_t, int64_t)>& progress) {
  return hot_pool_.Prepare(
      plan,
      [this](int64_t layer, int64_t neuron, std::byte* out) {
        return model_.PackBundles(layer, neuron, 1,
                                  std::span(out, static_cast<size_t>(layout_.bundle_bytes)));
      },
      progress);
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

void HostDevice::Embed(const DeviceBatch& batch) {
  const Matrix& embedding = weights_.embedding;
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    const absl::Status status =
        DecodeRow(embedding.dtype, embedding.data() + batch.rows[r].token * embedding.row_bytes,
                  embedding.row_bytes,
                  std::span(x_).subspan(r * static_cast<size_t>(config_.model_dim),
                                        static_cast<size_t>(config_.model_dim)));
    ISOTHERM_CHECK(status.ok());  // type and shape were validated while loading
  }
}

void HostDevice::PrepareRope(const DeviceBatch& batch) {
  const int64_t half = config_.rope_dims / 2;
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    for (int64_t i = 0; i < half; ++i) {
      double angle =
          static_cast<double>(batch.rows[r].position) *
          std::pow(static_cast<double>(config_.rope_freq_base),
                   -2.0 * static_cast<double>(i) / static_cast<double>(config_.rope_dims)) /
          static_cast<double>(config_.rope_scale);
      if (!weights_.rope_freqs.empty())
        angle /= static_cast<double>(weights_.rope_freqs[static_cast<size_t>(i)]);
      rope_cos_[r * static_cast<size_t>(half) + static_cast<size_t>(i)] =
          static_cast<float>(std::cos(angle));
      rope_sin_[r * static_cast<size_t>(half) + static_cast<size_t>(i)] =
          static_cast<float>(std::sin(angle));
    }
  }
}

void HostDevice::RunDensePart(int64_t layer_idx, StepState& step) {
  const HostWeights::Layer& layer = weights_.layers[static_cast<size_t>(layer_idx)];
  const KvLayerView kv = KvLayer(layer_idx);
  const int64_t rows = step.num_rows, dim = config_.model_dim, head_dim = config_.head_dim;
  const int64_t q_heads = config_.num_q_heads, kv_heads = config_.num_kv_heads;
  const int64_t q_dim = q_heads * head_dim, kv_dim = kv_heads * head_dim,
                half = config_.rope_dims / 2;
  const int64_t group = q_heads / kv_heads;
  const int num_threads = pool_.num_threads();
  const auto product = [&](const float* x, int64_t x_dim, const Matrix& w, float* y,
                           bool accumulate) {
    return MatMulParams{.x = x,
                        .x_stride = x_dim,
                        .num_rows = rows,
                        .w = View(w),
                        .y = y,
                        .y_stride = w.rows,
                        .accumulate = accumulate};
  };
  const MatMulParams o = product(attention_.data(), q_dim, layer.o, x_.data(), true);
  const auto norm_row = [&](const std::vector<float>& weight, int64_t r, std::vector<float>& out) {
    const std::span<float> row(out.data() + r * dim, static_cast<size_t>(dim));
    RmsNorm(x_.data() + r * dim, weight.data(), dim, config_.rms_eps, row.data());
    bf16_ ? RoundToBf16(row) : RoundToF16(row);
  };
  const auto norm_rows = [&](const std::vector<float>& weight, std::vector<float>& out, int t) {
    for (int64_t r = t; r < rows; r += num_threads) norm_row(weight, r, out);
  };

  // Heads in the order q, k, v. Where they divide well, a thread goes on with the heads it computed
  // itself and saves a barrier, which costs as much as a small product.
  const int64_t heads = q_heads + 2 * kv_heads;
  const bool by_head = heads >= 4 * num_threads && head_dim % kMatMulRowTile == 0;
  // Rotary embedding of a row's head; keys and values go to their page.
  const auto finish_head = [&](int64_t r, int64_t head) {
    const float* cos = rope_cos_.data() + r * half;
    const float* sin = rope_sin_.data() + r * half;
    if (head < q_heads) {
      RopeInterleaved(q_.data() + r * q_dim + head * head_dim, cos, sin, config_.rope_dims);
      return;
    }
    const bool is_key = head < q_heads + kv_heads;
    const int64_t kv_head = head - q_heads - (is_key ? 0 : kv_heads);
    const std::span<float> in((is_key ? k_ : v_).data() + r * kv_dim + kv_head * head_dim,
                              static_cast<size_t>(head_dim));
    if (is_key) RopeInterleaved(in.data(), cos, sin, config_.rope_dims);
    const DeviceRow& row = step.batch.rows[static_cast<size_t>(r)];
    const int64_t at = kv.Offset(row.pages[static_cast<size_t>(row.position / kPageSize)], kv_head,
                                 row.position % kPageSize);
    const std::span<uint16_t> out((is_key ? kv.keys : kv.values) + at,
                                  static_cast<size_t>(head_dim));
    bf16_ ? F32ToBf16(in, out) : F32ToF16(in, out);
  };

  pool_.Run([&](int t) {
    // A single row's norm is cheaper than a barrier: every thread makes its own copy.
    std::vector<float>& h = rows == 1 ? thread_h_[static_cast<size_t>(t)] : h_;
    const MatMulParams q = product(h.data(), dim, layer.q, q_.data(), false);
    const MatMulParams k = product(h.data(), dim, layer.k, k_.data(), false);
    const MatMulParams v = product(h.data(), dim, layer.v, v_.data(), false);
    if (rows == 1) {
      norm_row(layer.attn_norm, 0, h);
    } else {
      norm_rows(layer.attn_norm, h_, t);
      barrier_.Wait();
    }
    if (by_head) {
      const Slice mine = Share(heads, 1, t, num_threads);
      int64_t first_head = 0;
      for (const MatMulParams* params : {&q, &k, &v}) {
        const int64_t count = params->w.rows / head_dim;
        const int64_t first = std::clamp<int64_t>(mine.first - first_head, 0, count);
        const int64_t last = std::clamp<int64_t>(mine.last - first_head, 0, count);
        if (first < last) MatMulRows(*params, first * head_dim, last * head_dim);
        first_head += count;
      }
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t head = mine.first; head < mine.last; ++head) finish_head(r, head);
      }
    } else {
      for (const MatMulParams* params : {&q, &k, &v}) {
        const Slice slice = Share(params->w.rows, kMatMulRowTile, t, num_threads);
        if (slice.first < slice.last) MatMulRows(*params, slice.first, slice.last);
      }
      barrier_.Wait();
      for (int64_t item = t; item < rows * heads; item += num_threads) {
        finish_head(item / heads, item % heads);
      }
    }
    barrier_.Wait();
    for (int64_t item = t; item < rows * q_heads; item += num_threads) {
      const int64_t r = item / q_heads, head = item % q_heads;
      const DeviceRow& row = step.batch.rows[static_cast<size_t>(r)];
      AttendHead(q_.data() + r * q_dim + head * head_dim, kv, head / group, row.pages.data(),
                 row.position + 1, attention_scratch_[static_cast<size_t>(t)].data(),
                 attention_.data() + r * q_dim + head * head_dim);
    }
    barrier_.Wait();
    const Slice out = Share(dim, kMatMulRowTile, t, num_threads);
    if (out.first < out.last) MatMulRows(o, out.first, out.last);
    barrier_.Wait();
    if (step.predict) {
      const MatMulParams fc1 = product(x_.data(), dim, layer.fc1, hidden_.data(), false);
      const Slice slice = Share(layer.fc1.rows, kMatMulRowTile, t, num_threads);
      if (slice.first < slice.last) {
        MatMulRows(fc1, slice.first, slice.last);
        for (int64_t r = 0; r < rows; ++r) {
          Relu(std::span(hidden_.data() + r * layer.fc1.rows + slice.first,
                         static_cast<size_t>(slice.last - slice.first)));
        }
      }
    }
    norm_rows(layer.ffn_norm, z_, t);
    if (step.predict) {
      barrier_.Wait();
      const MatMulParams fc2 =
          product(hidden_.data(), layer.fc1.rows, layer.fc2, scores_.data(), false);
      const Slice slice = Share(config_.ffn_dim, 64, t, num_threads);  // whole words of the bitmap
      if (slice.first < slice.last) {
        MatMulRows(fc2, slice.first, slice.last);
        ScoresToBitmapWords({.scores = scores_.data(),
                             .stride = config_.ffn_dim,
                             .num_rows = rows,
                             .num_neurons = config_.ffn_dim,
                             .threshold = config_.sparse_threshold,
                             .bitmap = active_.data()},
                            slice.first / 64, CeilDiv<int64_t>(slice.last, 64));
      }
    }
  });

  const std::span<const float> z(z_.data(), static_cast<size_t>(rows * dim));
  const std::span<uint16_t> z16(z16_.data(), z.size());
  bf16_ ? F32ToBf16(z, z16) : F32ToF16(z, z16);
  for (int64_t r = 0; r < rows; ++r) {
    if (step.predict && !step.batch.rows[static_cast<size_t>(r)].exact) continue;
    uint64_t* bits = active_.data() + r * words_;
    std::fill(bits, bits + words_, ~uint64_t{0});
    if (config_.ffn_dim % 64 != 0) bits[words_ - 1] = (uint64_t{1} << (config_.ffn_dim % 64)) - 1;
  }
}

absl::Status HostDevice::ComputeOwned(const BundleView& bundles, const uint64_t* owned,
                                      float* partial, StepState& step, uint64_t* work_hash) {
  ISOTHERM_RETURN_IF_ERROR(SparseFfn({.bundles = bundles,
                                      .z = z_.data(),
                                      .num_rows = step.num_rows,
                                      .active = active_.data(),
                                      .owned = owned,
                                      .first_neuron = 0,
                                      .last_neuron = config_.ffn_dim,
                                      .activation = config_.activation,
                                      .partial = partial,
                                      .hash = &step.hash,
                                      .work_hash = work_hash,
                                      .workspace = workspace_.get()},
                                     pool_));
  step.output.open_neurons += SparseFfnOpenPairs(*workspace_);
  return absl::OkStatus();
}

absl::Status HostDevice::RunNeurons(int64_t layer, const ColdSide& cold, StepState& step) {
  const EpochTables::Layer& table = step.tables->layers[static_cast<size_t>(layer)];
  const int64_t rows = step.num_rows;
  LayerTiming timing{.layer = static_cast<int32_t>(layer)};
  bool any_hot = false, any_cold = false;
  for (int64_t w = 0; w < words_; ++w) {
    uint64_t together = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const uint64_t bits = active_[static_cast<size_t>(r * words_ + w)];
      together |= bits;
      step.output.active_neurons += std::popcount(bits);
      step.output.hot_neurons += std::popcount(bits & table.hot[static_cast<size_t>(w)]);
    }
    timing.active_neurons += std::popcount(together);
    timing.hot_neurons += std::popcount(together & table.hot[static_cast<size_t>(w)]);
    any_hot |= (together & table.hot[static_cast<size_t>(w)]) != 0;
    any_cold |= (together & table.cold[static_cast<size_t>(w)]) != 0;
  }
  step.hash = {.layer_seed =
                   LayerSeed(static_cast<uint64_t>(step.batch.epoch), static_cast<uint64_t>(layer)),
               .row_keys = step_keys_.data()};
  step.output.owed_hash +=
      OwedHash(step.hash, active_.data(), rows, config_.ffn_dim, nullptr, 0, config_.ffn_dim);

  const bool ask = any_cold && step.link != nullptr && !step.batch.gpu_only;
  bool posted = false;
  if (ask) {
    const absl::Status status = step.link->Post({.step_id = step.batch.step_id,
                                                 .epoch = step.batch.epoch,
                                                 .layer = static_cast<int32_t>(layer),
                                                 .attempt = step.batch.attempt,
                                                 .num_rows = static_cast<int32_t>(rows),
                                                 .cut = static_cast<int32_t>(config_.ffn_dim),
                                                 .z = z16_.data(),
                                                 .active = active_.data(),
                                                 .row_keys = row_keys_.data(),
                                                 .deadline = step.batch.deadline});
    posted = status.ok();
    if (!posted && step.link->alive()) return status;
  }
  TimePoint start = std::chrono::steady_clock::now();
  uint64_t hash = 0;
  if (any_hot) {
    const BundleView bundles{.dtype = layout_.dtype,
                             .rows = layout_.rows,
                             .model_dim = layout_.model_dim,
                             .row_bytes = layout_.row_bytes,
                             .bundle_bytes = layout_.bundle_bytes,
                             .data = hot_pool_.data(),
                             .slot_of = table.slot_of.data(),
                             .num_neurons = layout_.num_neurons};
    ISOTHERM_RETURN_IF_ERROR(
        ComputeOwned(bundles, table.hot.data(), hot_partial_.data(), step, &hash));
    step.output.work_hash += hash;
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
    } else if (step.link->alive()) {
      return result.status();
    }
  }
  if (any_cold && cold_sums == nullptr) {
    // The cpu_worker is not there, is not wanted, or was lost in this very layer.
    if (cold.arena == nullptr) {
      return absl::UnavailableError(
          "cold neurons are active and the cpu_worker is not attached; try again soon");
    }
    start = std::chrono::steady_clock::now();
    ISOTHERM_RETURN_IF_ERROR(ComputeOwned(cold.arena->Layer(layer), table.cold.data(),
                                          cold_partial_.data(), step, &hash));
    timing.gpu_us += MicrosSince(start);
    step.output.work_hash += hash;
    if (step.link != nullptr && !step.link->alive()) {
      step.link = nullptr;
      step.output.cpu_recomputed = true;
    }
    cold_sums = cold_partial_.data();
  }

  start = std::chrono::steady_clock::now();
  const int64_t count = rows * config_.model_dim;
  if (any_hot) {
    for (int64_t i = 0; i < count; ++i)
      x_[static_cast<size_t>(i)] += hot_partial_[static_cast<size_t>(i)];
  }
  if (cold_sums != nullptr) {
    for (int64_t i = 0; i < count; ++i) x_[static_cast<size_t>(i)] += cold_sums[i];
  }
  timing.merge_us = MicrosSince(start);
  if (step.batch.trace) step.output.timings.push_back(timing);
  return absl::OkStatus();
}

void HostDevice::Logits(StepState& step) {
  std::vector<size_t> wanted;
  for (size_t r = 0; r < step.batch.rows.size(); ++r) {
    if (step.batch.rows[r].sampling != nullptr) wanted.push_back(r);
  }
  if (wanted.empty()) return;
  const auto dim = static_cast<size_t>(config_.model_dim);
  const Matrix& head = weights_.logits_matrix();
  const auto vocab = static_cast<size_t>(head.rows);
  gathered_.resize(wanted.size() * dim);
  if (logits_.size() < wanted.size() * vocab) logits_.resize(wanted.size() * vocab);
  for (size_t i = 0; i < wanted.size(); ++i) {
    const std::span<float> row(gathered_.data() + i * dim, dim);
    RmsNorm(x_.data() + wanted[i] * dim, weights_.output_norm.data(), config_.model_dim,
            config_.rms_eps, row.data());
    bf16_ ? RoundToBf16(row) : RoundToF16(row);
  }
  const absl::Status status = MatMul({.x = gathered_.data(),
                                      .x_stride = config_.model_dim,
                                      .num_rows = static_cast<int64_t>(wanted.size()),
                                      .w = View(head),
                                      .y = logits_.data(),
                                      .y_stride = head.rows},
                                     pool_);
  ISOTHERM_CHECK(status.ok());
  for (size_t i = 0; i < wanted.size(); ++i) {
    DeviceSample sample{.row = static_cast<int64_t>(wanted[i])};
    sample.token = step.batch.rows[wanted[i]].sampling->Sample(
        std::span(logits_.data() + i * vocab, vocab), &sample.logprobs);
    step.output.samples.push_back(std::move(sample));
  }
}

absl::Status HostDevice::RunStep(const DeviceBatch& batch, const ColdSide& cold,
                                 DeviceOutput* output) {
  *output = DeviceOutput();
  StepState step{.batch = batch,
                 .output = *output,
                 .tables = hot_pool_.Find(batch.epoch),
                 .num_rows = static_cast<int64_t>(batch.rows.size())};
  if (step.tables == nullptr) {
    return absl::AbortedError(absl::StrCat("epoch ", batch.epoch, " is not prepared here"));
  }
  if (step.num_rows > options_.max_rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("a step of ", step.num_rows, " rows; at most ", options_.max_rows));
  }
  for (const DeviceRow& row : batch.rows) {
    step.predict |= config_.sparse && !batch.exact && !row.exact;
    if (row.token < 0 || row.token >= config_.vocab_size || row.position < 0 ||
        row.position >= config_.context_length ||
        static_cast<size_t>(row.position / kPageSize) >= row.pages.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("row with token ", row.token, " at position ", row.position, " and ",
                       row.pages.size(), " pages; the vocabulary has ", config_.vocab_size,
                       ", the context ", config_.context_length));
    }
  }
  step.link = cold.link != nullptr && cold.link->alive() ? cold.link : nullptr;
  step.nonce = step.link != nullptr ? step.link->hash_nonce() : 0;
  for (int64_t r = 0; r < step.num_rows; ++r) {
    step_keys_[static_cast<size_t>(r)] =
        StepKey(step.nonce, static_cast<uint64_t>(batch.step_id),
                static_cast<uint64_t>(batch.attempt), static_cast<uint64_t>(r));
  }
  Embed(batch);
  PrepareRope(batch);
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    const TimePoint start = std::chrono::steady_clock::now();
    RunDensePart(layer, step);
    const float dense_us = MicrosSince(start);
    ISOTHERM_RETURN_IF_ERROR(RunNeurons(layer, cold, step));
    if (batch.trace) output->timings.back().attention_us = dense_us;
  }
  if (step.link != nullptr) {
    const absl::Status status =
        step.link->EndOfStep(batch.step_id, batch.epoch, batch.attempt, batch.deadline);
    if (!status.ok() && step.link->alive()) return status;
    if (!status.ok()) output->cpu_recomputed = true;  // it will not report this step
  }
  // A peer that was lost cannot report what it did before; its results were accepted layer by
  // layer.
  if (output->cpu_recomputed) output->work_hash += step.cold_hash;
  Logits(step);
  return absl::OkStatus();
}

}  // namespace isotherm::gpu
