#include "gpu_worker/host/dense_section.h"

#include <bit>
#include <numeric>

#include "common/base/check.h"
#include "common/kernels/convert.h"
#include "common/kernels/matmul.h"
#include "common/kernels/predictor.h"
#include "common/telemetry/counter_table.h"
#include "gpu_worker/host/ops/attention.h"
#include "gpu_worker/host/ops/rope.h"

namespace isotherm::gpu {
namespace {

// Up to so many rows every thread norms all of them for itself: cheaper than a barrier.
constexpr int64_t kOwnNormRows = 2;

MatMulParams Product(const float* x, int64_t rows, const MatrixView& w, float* y, bool accumulate) {
  return {.x = x,
          .x_stride = w.columns,
          .num_rows = rows,
          .w = w,
          .y = y,
          .y_stride = w.rows,
          .accumulate = accumulate};
}

// values: [rows, dim]; `bias` [dim], or empty: none.
void AddBias(float* values, int64_t rows, int64_t dim, const std::vector<float>& bias,
             Slice slice) {
  if (bias.empty()) return;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = slice.first; i < slice.last; ++i) {
      values[r * dim + i] += bias[static_cast<size_t>(i)];
    }
  }
}

}  // namespace

DenseSection::DenseSection(const ModelConfig& config, bool bf16, int64_t max_kv_len,
                           StepBuffers& buffers, ThreadPool& pool)
    : config_(config),
      bf16_(bf16),
      buffers_(buffers),
      pool_(pool),
      barrier_(pool.num_threads()),
      q_dim_(config.num_q_heads * config.head_dim),
      kv_dim_(config.num_kv_heads * config.head_dim),
      // NeoX pairs lie half a head apart: heads stay whole.
      projection_tile_(config.rope_neox ? std::lcm(kMatMulRowTile, config.head_dim)
                                        : kMatMulRowTile),
      threads_(static_cast<size_t>(pool.num_threads())) {
  ISOTHERM_CHECK(config.head_dim % 2 == 0);
  for (PerThread& thread : threads_) {
    thread.scratch = AlignedArray<float>(AttendScratch(max_kv_len, config.head_dim));
    thread.h = AlignedArray<float>(kOwnNormRows * config.model_dim);
  }
}

void DenseSection::NormRow(const HostNorm& weights, int64_t row, float* out) const {
  NormRounded(config_, bf16_, buffers_.x.data() + row * config_.model_dim, weights,
              {out, static_cast<size_t>(config_.model_dim)});
}

// Elements `slice` of the rows' keys or values ([rows, kv_dim]) to their pages.
void DenseSection::StoreKv(const Input& input, const float* rows, uint16_t* pages,
                           Slice slice) const {
  const int64_t head_dim = config_.head_dim;
  for (size_t r = 0; r < input.rows.size(); ++r) {
    const DeviceRow& row = input.rows[r];
    const int32_t page = row.pages[static_cast<size_t>(row.position / kPageSize)];
    for (int64_t at = slice.first; at < slice.last;) {
      const int64_t head = at / head_dim, offset = at % head_dim;
      const auto count = static_cast<size_t>(std::min(head_dim - offset, slice.last - at));
      const std::span<const float> from(rows + static_cast<int64_t>(r) * kv_dim_ + at, count);
      const std::span<uint16_t> to(
          pages + input.kv.Offset(page, head, row.position % kPageSize) + offset, count);
      bf16_ ? F32ToBf16(from, to) : F32ToF16(from, to);
      at += static_cast<int64_t>(count);
    }
  }
}

// Elements `slice` of the rows' queries or keys ([num_rows, dim]); no pair is split by its ends.
void DenseSection::Rotate(float* values, int64_t dim, int64_t num_rows, Slice slice) const {
  const int64_t head_dim = config_.head_dim, half = config_.rope_dims / 2;
  for (int64_t r = 0; r < num_rows; ++r) {
    const float* cos = buffers_.rope_cos.data() + r * half;
    const float* sin = buffers_.rope_sin.data() + r * half;
    for (int64_t at = slice.first; at < slice.last;) {
      const int64_t head = at / head_dim * head_dim;
      const int64_t end = std::min(slice.last, head + head_dim);
      float* const first = values + r * dim + head;
      config_.rope_neox ? RopeNeox(first, cos, sin, half)
                        : RopeInterleaved(first, cos, sin, half, at - head, end - head);
      at = end;
    }
  }
}

// Thread t's share of [q | k | v] as one row of outputs. Its elements are rotated and stored right
// away: shares are cut where no pair is split.
void DenseSection::Project(const Input& input, const float* h, int t) {
  const auto rows = static_cast<int64_t>(input.rows.size());
  const HostWeights::Layer& layer = *input.layer;
  const Slice share = Share(q_dim_ + 2 * kv_dim_, projection_tile_, t, pool_.num_threads());
  const auto project = [&](int64_t base, const MatrixView& w, const std::vector<float>& bias,
                           float* out) {
    const Slice slice{std::clamp<int64_t>(share.first - base, 0, w.rows),
                      std::clamp<int64_t>(share.last - base, 0, w.rows)};
    if (slice.empty()) return slice;
    MatMulRows(Product(h, rows, w, out, false), slice.first, slice.last);
    AddBias(out, rows, w.rows, bias, slice);
    return slice;
  };
  const Slice q = project(0, layer.q, layer.q_bias, buffers_.q.data());
  const Slice k = project(q_dim_, layer.k, layer.k_bias, buffers_.k.data());
  const Slice v = project(q_dim_ + kv_dim_, layer.v, layer.v_bias, buffers_.v.data());
  if (config_.rotary) {
    Rotate(buffers_.q.data(), q_dim_, rows, q);
    Rotate(buffers_.k.data(), kv_dim_, rows, k);
  }
  StoreKv(input, buffers_.k.data(), input.kv.keys, k);
  StoreKv(input, buffers_.v.data(), input.kv.values, v);
}

void DenseSection::AttendRows(const Input& input, int t) {
  const int64_t head_dim = config_.head_dim, kv_heads = config_.num_kv_heads;
  const int64_t group = config_.num_q_heads / kv_heads;
  const auto rows = static_cast<int64_t>(input.rows.size());
  // Heads that share keys go together unless that leaves threads idle.
  const int64_t together = rows * kv_heads < pool_.num_threads() ? 1 : std::min(group, kMaxGroup);
  const int64_t pieces = CeilDiv<int64_t>(group, together);
  const int64_t items = rows * kv_heads * pieces;
  for (int64_t item = t; item < items; item += pool_.num_threads()) {
    const int64_t r = item / (kv_heads * pieces), kv_head = item / pieces % kv_heads;
    const int64_t first = item % pieces * together;
    const int64_t head = kv_head * group + first;
    const DeviceRow& row = input.rows[static_cast<size_t>(r)];
    Attend({.q = buffers_.q.data() + r * q_dim_ + head * head_dim,
            .num_heads = std::min(together, group - first),
            .kv = input.kv,
            .kv_head = kv_head,
            .pages = row.pages.data(),
            .kv_len = row.position + 1,
            .scratch = threads_[static_cast<size_t>(t)].scratch.data(),
            .out = buffers_.attention.data() + r * q_dim_ + head * head_dim});
  }
}

// Thread t's share of the predictor's first half, and its rows of z.
void DenseSection::Predict(const Input& input, int t) {
  const auto rows = static_cast<int64_t>(input.rows.size());
  const int64_t dim = config_.model_dim;
  if (config_.sparse) {
    const Matrix& fc1 = input.layer->fc1;
    const Slice slice = Share(fc1.rows, kMatMulRowTile, t, pool_.num_threads());
    if (!slice.empty()) {
      MatMulRows(Product(buffers_.x.data(), rows, View(fc1), buffers_.hidden.data(), false),
                 slice.first, slice.last);
      for (int64_t r = 0; r < rows; ++r) {
        Relu(std::span(buffers_.hidden.data() + r * fc1.rows + slice.first,
                       static_cast<size_t>(slice.last - slice.first)));
      }
    }
  }
  for (int64_t r = t; r < rows; r += pool_.num_threads()) {
    NormRow(input.layer->ffn_norm, r, buffers_.z.data() + r * dim);
    const std::span<const float> z(buffers_.z.data() + r * dim, static_cast<size_t>(dim));
    const std::span<uint16_t> z16(buffers_.z16.data() + r * dim, z.size());
    bf16_ ? F32ToBf16(z, z16) : F32ToF16(z, z16);
  }
}

// Adds the predictor's firings of every row. A word of bitmaps is one thread's, and so are its
// neurons' counts.
void DenseSection::CountPredicted(const Input& input, Slice words) const {
  for (size_t r = 0; r < input.rows.size(); ++r) {
    if (config_.sparse && (input.exact || input.rows[r].exact)) continue;
    const uint64_t* const active =
        buffers_.active.data() + static_cast<int64_t>(r) * buffers_.words;
    for (int64_t w = words.first; w < words.last; ++w) {
      uint32_t* const counts = input.predicted + w * 64;
      for (uint64_t bits = active[w]; bits != 0; bits &= bits - 1) {
        AddRelaxed(counts[std::countr_zero(bits)], 1);
      }
    }
  }
}

// Words `words` of every row's bitmap, their share of the owed hash and of the counts.
DenseSection::Output DenseSection::ActivateWords(const Input& input, Slice words) {
  const auto rows = static_cast<int64_t>(input.rows.size());
  const int64_t first = words.first * 64, last = std::min(config_.ffn_dim, words.last * 64);
  Output out;
  if (words.empty()) return out;
  const bool predicted = config_.sparse && !input.exact;
  if (input.predicted != nullptr) {
    // They come while the scores are computed.
    constexpr int64_t kCountsPerLine = 64 / sizeof(uint32_t);
    for (int64_t n = first; n < last; n += kCountsPerLine) {
      __builtin_prefetch(input.predicted + n, /*rw=*/1);
    }
  }
  if (predicted) {
    MatMulRows(Product(buffers_.hidden.data(), rows, View(input.layer->fc2), buffers_.scores.data(),
                       false),
               first, last);
    ScoresToBitmapWords({.scores = buffers_.scores.data(),
                         .stride = config_.ffn_dim,
                         .num_rows = rows,
                         .num_neurons = config_.ffn_dim,
                         .threshold = config_.sparse_threshold,
                         .bitmap = buffers_.active.data()},
                        words.first, words.last);
  }
  for (int64_t r = 0; r < rows; ++r) {
    if (predicted && !input.rows[static_cast<size_t>(r)].exact) continue;
    for (int64_t w = words.first; w < words.last; ++w) {
      const int64_t left = config_.ffn_dim - w * 64;
      buffers_.active.data()[r * buffers_.words + w] =
          left >= 64 ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
    }
  }
  if (input.predicted != nullptr) CountPredicted(input, words);
  for (int64_t w = words.first; w < words.last; ++w) {
    uint64_t together = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const uint64_t bits = buffers_.active.data()[r * buffers_.words + w];
      together |= bits;
      out.active_neurons += std::popcount(bits);
      out.hot_neurons += std::popcount(bits & input.hot[w]);
    }
    out.active_together += std::popcount(together);
    out.hot_together += std::popcount(together & input.hot[w]);
  }
  if (input.hash.row_keys == nullptr) return out;
  out.owed_hash =
      OwedHash(input.hash, buffers_.active.data(), rows, config_.ffn_dim, nullptr, first, last);
  return out;
}

DenseSection::Output DenseSection::Run(const Input& input) {
  const auto rows = static_cast<int64_t>(input.rows.size());
  const int64_t dim = config_.model_dim;
  const int num_threads = pool_.num_threads();
  pool_.Run([&](int t) {
    PerThread& thread = threads_[static_cast<size_t>(t)];
    const float* h = buffers_.h.data();
    if (config_.parallel_attention) Predict(input, t);  // of the x that attention is added to below
    if (rows <= kOwnNormRows) {
      for (int64_t r = 0; r < rows; ++r)
        NormRow(input.layer->attention_norm, r, thread.h.data() + r * dim);
      h = thread.h.data();
    } else {
      for (int64_t r = t; r < rows; r += num_threads)
        NormRow(input.layer->attention_norm, r, buffers_.h.data() + r * dim);
      barrier_.Wait();
    }
    Project(input, h, t);
    barrier_.Wait();
    AttendRows(input, t);
    barrier_.Wait();
    const Slice out = Share(dim, kMatMulRowTile, t, num_threads);
    if (!out.empty()) {
      MatMulRows(
          Product(buffers_.attention.data(), rows, View(input.layer->o), buffers_.x.data(), true),
          out.first, out.last);
      AddBias(buffers_.x.data(), rows, dim, input.layer->o_bias, out);
    }
    if (!config_.parallel_attention) {
      barrier_.Wait();
      Predict(input, t);
      barrier_.Wait();
    }
    thread.output = ActivateWords(input, Share(buffers_.words, 1, t, num_threads));
  });
  Output total;
  for (const PerThread& thread : threads_) {
    total.owed_hash += thread.output.owed_hash;
    total.active_neurons += thread.output.active_neurons;
    total.hot_neurons += thread.output.hot_neurons;
    total.active_together += thread.output.active_together;
    total.hot_together += thread.output.hot_together;
  }
  return total;
}

}  // namespace isotherm::gpu
