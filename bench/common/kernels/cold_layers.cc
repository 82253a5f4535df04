#include "bench/common/kernels/cold_layers.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <utility>

namespace isotherm {
namespace {

// Changes the sign of every weight of a row.
void Negate(DType dtype, std::byte* row, int64_t row_bytes) {
  const int64_t step = Info(dtype).block_bytes;  // the sign of a block's scale will do
  for (int64_t at = 0; at < row_bytes; at += step) row[at + 1] ^= std::byte{0x80};
}

}  // namespace

ColdLayers::ColdLayers(const Options& options, ThreadPool& pool) : options_(options) {
  row_bytes_ = RowBytes(options.dtype, options.shape.model_dim).value();
  bundle_bytes_ = (options.shape.bundle_rows * row_bytes_ + 63) / 64 * 64;
  const int64_t layer_bytes = bundle_bytes_ * options.shape.num_neurons;
  num_layers_ = std::max<int64_t>(1, options.bytes / layer_bytes);
  memory_ = std::make_unique<probe::TestMemory>(
      probe::TestMemory::Options{.kind = probe::TestMemory::Kind::kSealedMemfd,
                                 .bytes = num_layers_ * layer_bytes + (int64_t{2} << 20),
                                 .reserve_first = !options.huge_pages,
                                 .collapse_first = options.huge_pages});
  if (memory_->data() == nullptr) {
    error_ = memory_->error();
    return;
  }
  for (int64_t i = 0; i < options.max_rows * options.shape.model_dim; ++i) {
    const float value = std::sin(static_cast<float>(i));
    z_.push_back(options.dtype == DType::kBF16 ? F32ToBf16(value) : F32ToF16(value));
    wide_z_.push_back(options.dtype == DType::kBF16 ? Bf16ToF32(z_.back()) : F16ToF32(z_.back()));
  }
  MakeDistinct();
  Fill(pool);
}

void ColdLayers::MakeDistinct() {
  const int64_t dim = options_.shape.model_dim;
  const int rows = options_.shape.bundle_rows;
  const std::vector<std::byte> weights = TestWeights(options_.dtype, kDistinct * rows, dim);
  distinct_.resize(static_cast<size_t>(kDistinct * bundle_bytes_));
  open_.resize(static_cast<size_t>(kDistinct * options_.max_rows));
  for (int64_t n = 0; n < kDistinct; ++n) {
    std::byte* const bundle = distinct_.data() + n * bundle_bytes_;
    std::memcpy(bundle, weights.data() + n * rows * row_bytes_,
                static_cast<size_t>(rows * row_bytes_));
    // The first row of z decides; further rows' gates fall as they fall.
    const bool want_open = static_cast<double>(n) < options_.open_share * kDistinct;
    const bool is_open = PlainDot(options_.dtype, bundle, wide_z_.data(), dim).first > 0;
    if (want_open != is_open) Negate(options_.dtype, bundle, row_bytes_);
    for (int64_t r = 0; r < options_.max_rows; ++r) {
      open_[static_cast<size_t>(n * options_.max_rows + r)] =
          PlainDot(options_.dtype, bundle, wide_z_.data() + r * dim, dim).first > 0;
    }
  }
}

void ColdLayers::Fill(ThreadPool& pool) {
  std::atomic<int64_t> cursor{0};
  auto* const base = reinterpret_cast<std::byte*>(memory_->data());
  const int64_t neurons = num_layers_ * options_.shape.num_neurons;
  constexpr int64_t kPiece = 64;
  pool.RunElastic([&](int) {
    for (int64_t i; (i = cursor.fetch_add(kPiece)) < neurons;) {
      for (int64_t n = i; n < std::min(neurons, i + kPiece); ++n) {
        std::memcpy(base + n * bundle_bytes_, BundleOf(n % options_.shape.num_neurons),
                    static_cast<size_t>(bundle_bytes_));
      }
    }
  });
}

std::vector<uint64_t> ColdLayers::ActiveSet(int64_t rows, double share, uint32_t seed) const {
  const int64_t words = (options_.shape.num_neurons + 63) / 64;
  std::vector<uint64_t> set(static_cast<size_t>(rows * words), 0);
  uint32_t random = seed * 2654435761u + 99;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t id = 0; id < options_.shape.num_neurons; ++id) {
      random = random * 1664525u + 1013904223u;
      if ((random >> 8) / 16777216.0 >= share) continue;
      set[static_cast<size_t>(row * words + id / 64)] |= uint64_t{1} << (id % 64);
    }
  }
  return set;
}

void ColdLayers::Aim(int64_t layer, SparseFfnParams& params) const {
  const Shape& shape = options_.shape;
  params.bundles = {.dtype = options_.dtype,
                    .rows = shape.bundle_rows,
                    .model_dim = shape.model_dim,
                    .row_bytes = row_bytes_,
                    .bundle_bytes = bundle_bytes_,
                    .data = reinterpret_cast<const std::byte*>(memory_->data()) +
                            layer % num_layers_ * bundle_bytes_ * shape.num_neurons,
                    .num_neurons = shape.num_neurons};
  (options_.dtype == DType::kBF16 ? params.z_bf16 : params.z_f16) = z_.data();
  params.last_neuron = shape.num_neurons;
}

double ColdLayers::BytesToRead(const std::vector<uint64_t>& active, int64_t rows) const {
  const int64_t words = (options_.shape.num_neurons + 63) / 64;
  double bytes = 0;
  for (int64_t id = 0; id < options_.shape.num_neurons; ++id) {
    bool any = false, open = false;
    for (int64_t row = 0; row < rows; ++row) {
      if ((active[static_cast<size_t>(row * words + id / 64)] >> (id % 64) & 1) == 0) continue;
      any = true;
      open |= open_[static_cast<size_t>(id % kDistinct * options_.max_rows + row)] != 0;
    }
    bytes += static_cast<double>(row_bytes_ * (open ? options_.shape.bundle_rows : any ? 1 : 0));
  }
  return bytes;
}

bool ColdLayers::ResultIsRight(const SparseFfnParams& p) const {
  constexpr int64_t kColumns = 16;
  const BundleView& b = p.bundles;
  const int64_t words = (b.num_neurons + 63) / 64;
  for (int64_t row = 0; row < p.num_rows; ++row) {
    const float* const z = wide_z_.data() + row * b.model_dim;
    // Equal neurons give equal terms: each kind is computed once.
    std::vector<double> times(kDistinct, 0.0);
    for (int64_t id = 0; id < b.num_neurons; ++id) {
      times[static_cast<size_t>(id % kDistinct)] +=
          static_cast<double>(p.active[row * words + id / 64] >> (id % 64) & 1);
    }
    std::vector<double> want(kColumns, 0.0), magnitude(kColumns, 0.0);
    for (int64_t n = 0; n < kDistinct; ++n) {
      const std::byte* const bundle = BundleOf(n);
      auto [scale, size] = PlainDot(b.dtype, bundle, z, b.model_dim);
      scale = std::max(0.0, scale);
      if (b.rows == 3) {
        const auto [up, up_size] = PlainDot(b.dtype, bundle + b.row_bytes, z, b.model_dim);
        scale *= up;
        size *= up_size;
      }
      for (int64_t i = 0; i < kColumns; ++i) {
        const double down = PlainElement(b.dtype, bundle + (b.rows - 1) * b.row_bytes,
                                         i * (b.model_dim / kColumns));
        want[static_cast<size_t>(i)] += times[static_cast<size_t>(n)] * scale * down;
        magnitude[static_cast<size_t>(i)] += times[static_cast<size_t>(n)] * size * std::abs(down);
      }
    }
    for (int64_t i = 0; i < kColumns; ++i) {
      const float got = p.partial[row * b.model_dim + i * (b.model_dim / kColumns)];
      const double bound = std::ldexp(
          magnitude[static_cast<size_t>(i)] * static_cast<double>(3 * b.model_dim + b.num_neurons),
          -24);
      if (!(std::abs(static_cast<double>(got) - want[static_cast<size_t>(i)]) <= bound)) {
        return false;
      }
    }
  }
  return true;
}

}  // namespace isotherm
