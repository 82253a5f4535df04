#include "tests/reference/integer_model.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/tensor/half.h"
#include "models/gguf/gguf_writer.h"

namespace isotherm::reference {
namespace {

// Residual layout: anchors (0 ..), scratch (.. 31, starts at 0), two constants 1, token id bits as
// -1 / +1, free integers.
constexpr int64_t kOne = 32;
constexpr int64_t kOne16 = 33;  // normalised to 16 by ffn_norm: wide thresholds from small weights
constexpr int64_t kFirstBit = 34;
constexpr double kAnchor = 32768.0;
constexpr double kResidualMax = 100;
constexpr double kGateMax = 84;  // gate <= 84 and |up| <= 3: activations <= 252 are exact in BF16
constexpr double kSlack = 3;     // a gate differs from its cluster's shared part by at most this
constexpr double kEps = 1e-5;
constexpr double kSumLimit = 16777216.0;

// v = 16 * high + low with -high and -low both in -8..7.
std::pair<double, double> Split16(int64_t v) {
  const int64_t high = (v + 7) >= 0 ? (v + 7) / 16 : -((-(v + 7) + 15) / 16);
  return {static_cast<double>(high), static_cast<double>(v - 16 * high)};
}

// Exact bytes of a matrix whose blocks of 32 are integers -8..7 times a power of two.
void AppendExact(const std::vector<double>& values, DType dtype, std::vector<std::byte>& out) {
  const auto put16 = [&out](uint16_t bits) {
    out.push_back(static_cast<std::byte>(bits & 0xff));
    out.push_back(static_cast<std::byte>(bits >> 8));
  };
  for (size_t block = 0; block < values.size(); block += 32) {
    if (dtype == DType::kF16 || dtype == DType::kBF16) {
      for (size_t i = block; i < block + 32; ++i) {
        const auto value = static_cast<float>(values[i]);
        const uint16_t bits = dtype == DType::kF16 ? F32ToF16(value) : F32ToBf16(value);
        ISOTHERM_CHECK((dtype == DType::kF16 ? F16ToF32(bits) : Bf16ToF32(bits)) == value);
        put16(bits);
      }
      continue;
    }
    int64_t common = 0;
    for (size_t i = block; i < block + 32; ++i) common |= std::abs(static_cast<int64_t>(values[i]));
    const int64_t scale = common == 0 ? 1 : (common & -common);
    put16(F32ToF16(static_cast<float>(scale)));
    std::array<int, 32> q;
    for (size_t i = 0; i < 32; ++i) {
      q[i] = static_cast<int>(static_cast<int64_t>(values[block + i]) / scale);
      ISOTHERM_CHECK(q[i] >= -8 && q[i] <= 7 &&
                     static_cast<double>(q[i] * scale) == values[block + i]);
    }
    if (dtype == DType::kQ8_0) {
      for (const int value : q) out.push_back(static_cast<std::byte>(static_cast<int8_t>(value)));
    } else {
      ISOTHERM_CHECK(dtype == DType::kQ4_0);
      for (size_t i = 0; i < 16; ++i)
        out.push_back(static_cast<std::byte>((q[i] + 8) | ((q[i + 16] + 8) << 4)));
    }
  }
}

}  // namespace

int64_t IntegerModel::Uniform(int64_t low, int64_t high) {
  return low + static_cast<int64_t>(rng_() % static_cast<uint64_t>(high - low + 1));
}

int64_t IntegerModel::Pick(std::initializer_list<int64_t> items) {
  return items.begin()[Uniform(0, static_cast<int64_t>(items.size()) - 1)];
}

std::vector<int64_t> IntegerModel::Permutation(std::vector<int64_t> items) {
  for (size_t i = items.size(); i > 1; --i) {
    std::swap(items[i - 1], items[static_cast<size_t>(Uniform(0, static_cast<int64_t>(i) - 1))]);
  }
  return items;
}

IntegerModel::IntegerModel(const IntegerModelOptions& options)
    : options_(options), rng_(options.seed) {
  const int64_t dim = options_.model_dim;
  head_dim_ = dim / options_.num_q_heads;
  num_bits_ = std::bit_width(static_cast<uint64_t>(options_.vocab_size - 1));
  first_free_ = kFirstBit + num_bits_;
  rank_ = std::max<int64_t>(32, options_.ffn_dim / 8 / 32 * 32);
  ISOTHERM_CHECK(dim % 32 == 0 && first_free_ + 8 <= dim && options_.ffn_dim % 2 == 0);
  key_unit_ = 32;
  query_unit_ = std::exp2(std::floor(std::log2(
      32768.0 / (49.0 * key_unit_ * static_cast<double>(head_dim_) / 2 / std::sqrt(head_dim_)))));
  num_anchors_ =
      static_cast<int64_t>(std::ceil(static_cast<double>(dim) * kResidualMax * kResidualMax /
                                     (0.98 * std::exp2(-10) * kAnchor * kAnchor)));
  ISOTHERM_CHECK(num_anchors_ < 24);

  for (int64_t b = 0; b < num_bits_; ++b) bit_coordinates_.push_back(kFirstBit + b);
  std::vector<int64_t> free;
  for (int64_t i = num_anchors_; i < 32; ++i) free.push_back(i);
  for (int64_t i = first_free_; i < dim; ++i) free.push_back(i);
  free = Permutation(free);
  for (size_t i = 0; i < free.size(); ++i)
    (i % 2 == 0 ? ffn_writes_ : attention_writes_).push_back(free[i]);
  std::sort(ffn_writes_.begin(), ffn_writes_.end());
  std::sort(attention_writes_.begin(), attention_writes_.end());

  embedding_ = Matrix(options_.vocab_size, dim);
  bound_.assign(static_cast<size_t>(dim), 0);
  for (int64_t t = 0; t < options_.vocab_size; ++t) {
    for (int64_t i = 0; i < num_anchors_; ++i) embedding_.at(t, i) = kAnchor;
    embedding_.at(t, kOne) = embedding_.at(t, kOne16) = 1;
    for (int64_t b = 0; b < num_bits_; ++b) {
      embedding_.at(t, kFirstBit + b) = ((t >> (num_bits_ - 1 - b)) & 1) != 0 ? 1 : -1;
    }
    for (int64_t i = first_free_; i < dim; ++i)
      embedding_.at(t, i) = static_cast<double>(Uniform(-2, 2));
    for (int64_t i = 0; i < dim; ++i) {
      bound_[static_cast<size_t>(i)] =
          std::max(bound_[static_cast<size_t>(i)], std::abs(embedding_.at(t, i)));
    }
  }

  // Text that sets the gates' thresholds so that neurons fire for some tokens; it proves nothing.
  constexpr int kTexts = 8, kTextLength = 48;
  std::vector<std::vector<std::vector<int64_t>>> texts(kTexts);
  for (auto& text : texts) {
    for (int p = 0; p < kTextLength; ++p) {
      const int64_t token = Uniform(0, options_.vocab_size - 1);
      std::vector<int64_t> x(static_cast<size_t>(dim));
      for (int64_t i = 0; i < dim; ++i)
        x[static_cast<size_t>(i)] = static_cast<int64_t>(embedding_.at(token, i));
      text.push_back(std::move(x));
    }
  }
  for (int64_t l = 0; l < options_.num_layers; ++l) {
    Layer layer;
    BuildAttention(layer);
    std::vector<std::vector<int64_t>> flat;
    for (auto& text : texts) {
      std::vector<std::vector<int64_t>> values;
      for (const auto& x : text) values.push_back(ValueInteger(layer, x));
      for (size_t p = 0; p < text.size(); ++p) {
        const std::vector<int64_t> y =
            AttendInteger(layer, values, text[p], static_cast<int64_t>(p));
        for (size_t i = 0; i < y.size(); ++i) text[p][i] += y[i];
        flat.push_back(text[p]);
      }
    }
    BuildFfn(layer, flat);
    for (auto& text : texts) {
      for (auto& x : text) {
        const std::vector<int64_t> y = FfnInteger(layer, x);
        for (size_t i = 0; i < y.size(); ++i) x[i] += y[i];
      }
    }
    layers_.push_back(std::move(layer));
  }

  double energy = 0;
  for (int64_t i = num_anchors_; i < dim; ++i)
    energy += bound_[static_cast<size_t>(i)] * bound_[static_cast<size_t>(i)];
  const double total = static_cast<double>(num_anchors_) * kAnchor * kAnchor;
  ISOTHERM_CHECK(energy / (4 * total) + std::exp2(-20) < std::exp2(-12));
  const auto unit =
      static_cast<float>(std::sqrt((total + energy / 2) / static_cast<double>(dim) + kEps));
  attn_norm_.assign(static_cast<size_t>(dim), unit);
  for (int64_t i = 0; i < num_anchors_; ++i) attn_norm_[static_cast<size_t>(i)] = 0;
  ffn_norm_ = output_norm_ = attn_norm_;
  ffn_norm_[kOne16] *= 16;
  head_scale_.assign(static_cast<size_t>(dim), 1);
  for (const int64_t i : free)
    head_scale_[static_cast<size_t>(i)] = static_cast<double>(Pick({-1, 1}));
  for (int64_t b = 0; b < num_bits_; ++b) {
    head_scale_[static_cast<size_t>(kFirstBit + b)] =
        std::exp2(-static_cast<double>(b + 2));  // in (-1/2, 1/2) together: logits never tie
  }
  head_scale_[kOne] = head_scale_[kOne16] = 0;
  for (int64_t i = 0; i < dim; ++i) {
    output_norm_[static_cast<size_t>(i)] *= static_cast<float>(head_scale_[static_cast<size_t>(i)]);
  }
  for (int64_t i = 0; i < num_anchors_; ++i) head_scale_[static_cast<size_t>(i)] = 0;
  head_ = Matrix(options_.vocab_size, dim);
  if (options_.tied) {
    head_ = embedding_;
  } else {
    for (int64_t t = 0; t < options_.vocab_size; ++t) {
      for (const int64_t i : bit_coordinates_) head_.at(t, i) = embedding_.at(t, i);
      for (const int64_t i : free) head_.at(t, i) = static_cast<double>(Uniform(-2, 2));
    }
  }
  for (int64_t t = 0; t < options_.vocab_size; ++t) {
    double sum = 0;
    for (int64_t i = 0; i < dim; ++i) {
      sum += std::abs(head_.at(t, i) * bound_[static_cast<size_t>(i)] *
                      head_scale_[static_cast<size_t>(i)]);
    }
    ISOTHERM_CHECK(sum * std::exp2(num_bits_ + 1) < kSumLimit);
  }
}

// Two query vectors (token bit -1 and +1) and where each looks; false when a gap is too small for
// softmax to be exactly one-hot, and the caller draws again.
bool IntegerModel::MakeHeadTable(HeadTable* table) {
  const int64_t context = options_.context_length;
  std::vector<double> theta;
  for (int64_t i = 0; i < head_dim_; i += 2) {
    theta.push_back(std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(head_dim_)));
  }
  std::array<std::vector<double>, 2> target;
  for (auto& vector : target) {
    const double distance = static_cast<double>(Uniform(0, 95));
    for (const double t : theta) {
      vector.push_back(std::cos(distance * t));
      vector.push_back(-std::sin(distance * t));
    }
  }
  table->mid.clear();
  table->diff.clear();
  for (int64_t i = 0; i < head_dim_; ++i) {
    const size_t s = static_cast<size_t>(i);
    table->mid.push_back(std::rint(3.5 * (target[0][s] + target[1][s])));
    table->diff.push_back(std::rint(3.5 * (target[0][s] - target[1][s])));
    if (std::abs(table->mid.back()) > 7 || std::abs(table->diff.back()) > 7) return false;
  }
  table->win.clear();
  const double key = 7 * key_unit_;
  const double scale = 1 / std::sqrt(static_cast<double>(head_dim_));
  for (const double bit : {-1.0, 1.0}) {
    double reach = 0;
    std::vector<double> a, b;
    for (size_t i = 0; i < theta.size(); ++i) {
      a.push_back((table->mid[2 * i] + bit * table->diff[2 * i]) * query_unit_);
      b.push_back((table->mid[2 * i + 1] + bit * table->diff[2 * i + 1]) * query_unit_);
      reach += std::hypot(a.back(), b.back()) * key;
    }
    // exp(-104) is 0 in F32; twice that, and room for both sides rounded to 16 bits.
    const double need = 2 * 104 + std::exp2(-7) * reach * scale;
    double best = -INFINITY, second = -INFINITY;
    int32_t best_distance = 0;
    std::vector<int32_t> win;
    for (int64_t d = 0; d < context; ++d) {
      double score = 0;
      for (size_t i = 0; i < theta.size(); ++i) {
        const double angle = static_cast<double>(d) * theta[i];
        score += (a[i] * std::cos(angle) - b[i] * std::sin(angle)) * key;
      }
      score *= scale;
      if (score > best) {
        second = best;
        best = score;
        best_distance = static_cast<int32_t>(d);
      } else {
        second = std::max(second, score);
      }
      if (d > 0 && best - second < need) return false;
      win.push_back(best_distance);
    }
    table->win.push_back(std::move(win));
  }
  return true;
}

void IntegerModel::BuildAttention(Layer& layer) {
  const int64_t dim = options_.model_dim;
  const int64_t kv_dim = options_.num_kv_heads * head_dim_;
  layer.q = Matrix(dim, dim);
  layer.k = Matrix(kv_dim, dim);
  layer.v = Matrix(kv_dim, dim);
  layer.o = Matrix(dim, dim);
  for (int64_t h = 0; h < options_.num_q_heads; ++h) {
    HeadTable table;
    while (!MakeHeadTable(&table)) {
    }
    table.bit = bit_coordinates_[static_cast<size_t>(Uniform(0, num_bits_ - 1))];
    for (int64_t i = 0; i < head_dim_; ++i) {
      layer.q.at(h * head_dim_ + i, kOne) = table.mid[static_cast<size_t>(i)] * query_unit_;
      layer.q.at(h * head_dim_ + i, table.bit) = table.diff[static_cast<size_t>(i)] * query_unit_;
    }
    layer.heads.push_back(std::move(table));
  }
  for (int64_t r = 0; r < kv_dim; r += 2) layer.k.at(r, kOne) = 7 * key_unit_;
  // Values read what the FFN writes, and some token bits.
  std::vector<int64_t> sources = ffn_writes_;
  for (int i = 0; i < 8; ++i) {
    sources.push_back(bit_coordinates_[static_cast<size_t>(Uniform(0, num_bits_ - 1))]);
  }
  sources = Permutation(sources);
  std::vector<double> value_bound(static_cast<size_t>(kv_dim));
  for (int64_t r = 0; r < kv_dim; ++r) {
    const int64_t source = sources[static_cast<size_t>(r) % sources.size()];
    layer.v.at(r, source) = static_cast<double>(Pick({-1, 1}));
    value_bound[static_cast<size_t>(r)] = bound_[static_cast<size_t>(source)];
  }
  const int64_t group = options_.num_q_heads / options_.num_kv_heads;
  std::vector<int64_t> columns(static_cast<size_t>(dim));
  std::iota(columns.begin(), columns.end(), 0);
  columns = Permutation(columns);
  size_t next = 0;
  for (const int64_t row : attention_writes_) {
    for (int i = 0; i < 2; ++i) {
      const int64_t column = columns[next++ % columns.size()];
      const int64_t kv_head = column / head_dim_ / group;
      const double add = value_bound[static_cast<size_t>(kv_head * head_dim_ + column % head_dim_)];
      double& bound = bound_[static_cast<size_t>(row)];
      if (bound + add <= kResidualMax && layer.o.at(row, column) == 0) {
        layer.o.at(row, column) = static_cast<double>(Pick({-1, 1}));
        bound += add;
      }
    }
  }
}

void IntegerModel::BuildFfn(Layer& layer, std::vector<std::vector<int64_t>>& calibration) {
  const int64_t dim = options_.model_dim, ffn = options_.ffn_dim;
  std::vector<double> z_bound = bound_;
  for (int64_t i = 0; i < num_anchors_; ++i) z_bound[static_cast<size_t>(i)] = 0;
  z_bound[kOne16] = 16;

  // fc1 rows: 0 and 1 give the constants 1 and 14 (there is no bias), the others a cluster's shared
  // part.
  layer.fc1 = Matrix(rank_, dim);
  layer.fc1.at(0, kOne) = 1;
  layer.fc1.at(1, kOne) = layer.fc1.at(1, kOne16) = 7;  // both are 1 in the un-normalised input
  constexpr double kWide = 14;
  std::vector<std::vector<double>> shared(static_cast<size_t>(rank_),
                                          std::vector<double>(static_cast<size_t>(dim)));
  for (int64_t c = 2; c < rank_; ++c) {
    double budget = kGateMax - kSlack;
    std::vector<int64_t> columns = bit_coordinates_;
    columns.insert(columns.end(), ffn_writes_.begin(), ffn_writes_.end());
    columns.insert(columns.end(), attention_writes_.begin(), attention_writes_.end());
    for (const int64_t j : Permutation(columns)) {
      const double value = static_cast<double>(Pick({-3, -2, -1, 1, 2, 3}));
      const double cost = std::abs(value) * std::max(bound_[static_cast<size_t>(j)], 1.0);
      if (cost <= budget) {
        shared[static_cast<size_t>(c)][static_cast<size_t>(j)] = layer.fc1.at(c, j) = value;
        budget -= cost;
      }
    }
  }
  layer.gate = Matrix(ffn, dim);
  layer.up = Matrix(ffn, dim);
  layer.down = Matrix(ffn, dim);
  layer.fc2 = Matrix(ffn, rank_);
  std::vector<int64_t> order(static_cast<size_t>(ffn));
  std::iota(order.begin(), order.end(), 0);
  order = Permutation(order);  // the two of a pair lie far apart
  std::vector<int64_t> targets = Permutation(ffn_writes_);
  const int64_t num_steps =
      std::min<int64_t>(2 * static_cast<int64_t>(ffn_writes_.size()), ffn / 3);
  int64_t steps_left = num_steps;
  for (int64_t pair = 0; pair < ffn / 2; ++pair) {
    const int64_t cluster = 2 + pair % (rank_ - 2);
    const std::vector<double>& w = shared[static_cast<size_t>(cluster)];
    std::vector<int64_t> pre;
    for (const auto& x : calibration) {
      double sum = 0;
      for (int64_t i = 0; i < dim; ++i)
        sum += w[static_cast<size_t>(i)] * static_cast<double>(x[static_cast<size_t>(i)]);
      pre.push_back(static_cast<int64_t>(sum));
    }
    std::sort(pre.begin(), pre.end());
    const double quantile = 0.55 + 0.38 * static_cast<double>(Uniform(0, 999)) / 1000;
    const int64_t theta = std::clamp<int64_t>(
        pre[static_cast<size_t>(quantile * static_cast<double>(pre.size() - 1))], 1, 80);
    const std::vector<int64_t> bits = Permutation(bit_coordinates_);
    int64_t target = -1;
    if (steps_left > 0) {
      --steps_left;
      target = targets[static_cast<size_t>(steps_left) % targets.size()];
      if (bound_[static_cast<size_t>(target)] + 1 > kResidualMax) target = -1;
    }
    std::vector<double> gate = w;
    for (int i = 0; i < static_cast<int>(kSlack); ++i) {
      gate[static_cast<size_t>(bits[static_cast<size_t>(i)])] += static_cast<double>(Pick({-1, 1}));
    }
    std::vector<double> up(static_cast<size_t>(dim)), down(static_cast<size_t>(dim));
    up[static_cast<size_t>(bits.back())] = static_cast<double>(Pick({-1, 1}));
    if (target >= 0) {
      down[static_cast<size_t>(target)] = static_cast<double>(Pick({-1, 1}));
      bound_[static_cast<size_t>(target)] += 1;
    } else {
      up[static_cast<size_t>(bits[bits.size() - 2])] = static_cast<double>(Pick({-1, 1}));
      up[static_cast<size_t>(bits[bits.size() - 3])] = static_cast<double>(Pick({-1, 1}));
      std::vector<int64_t> columns = ffn_writes_;
      columns.insert(columns.end(), attention_writes_.begin(), attention_writes_.end());
      columns = Permutation(columns);
      for (size_t i = 0; i < std::min<size_t>(12, columns.size()); ++i) {
        down[static_cast<size_t>(columns[i])] = static_cast<double>(Pick({-3, -2, -1, 1, 2, 3}));
      }
    }
    for (int which = 0; which < 2; ++which) {
      const int64_t n = order[static_cast<size_t>(2 * pair + which)];
      const int64_t threshold = theta + (target >= 0 ? which : 0);
      const auto [high, low] = Split16(threshold);
      for (int64_t i = 0; i < dim; ++i) {
        layer.gate.at(n, i) = gate[static_cast<size_t>(i)];
        layer.up.at(n, i) = up[static_cast<size_t>(i)];
        layer.down.at(n, i) =
            which == 0 ? down[static_cast<size_t>(i)] : -down[static_cast<size_t>(i)];
      }
      layer.gate.at(n, kOne) = -low;
      layer.gate.at(n, kOne16) = -high;
      // score = max(0, shared . p) - bar with bar <= threshold - slack, so whatever fires has score
      // >= 1.
      const int64_t bar = threshold - static_cast<int64_t>(kSlack);
      const double wide = std::rint(static_cast<double>(bar) / kWide);
      layer.fc2.at(n, cluster) = 1;
      layer.fc2.at(n, 1) = -wide;
      layer.fc2.at(n, 0) = -(static_cast<double>(bar) - wide * kWide);
      ISOTHERM_CHECK(layer.fc2.at(n, 0) >= -8 && layer.fc2.at(n, 0) <= 7);
    }
  }

  // Worst cases: gates and activations are small enough, sums stay below 2^24.
  std::vector<double> down_sum(static_cast<size_t>(dim));
  for (int64_t n = 0; n < ffn; ++n) {
    double gate = 0, up = 0, positive = 0;
    for (int64_t i = 0; i < dim; ++i) {
      gate += std::abs(layer.gate.at(n, i)) * z_bound[static_cast<size_t>(i)];
      up += std::abs(layer.up.at(n, i)) * z_bound[static_cast<size_t>(i)];
      if (i != kOne && i != kOne16)
        positive += std::abs(layer.gate.at(n, i)) * z_bound[static_cast<size_t>(i)];
    }
    ISOTHERM_CHECK(gate < kSumLimit);
    const double act = positive * up;
    ISOTHERM_CHECK(up <= 3 && act <= 3 * kGateMax);
    for (int64_t i = 0; i < dim; ++i)
      down_sum[static_cast<size_t>(i)] += std::abs(layer.down.at(n, i)) * act;
  }
  for (const double sum : down_sum) ISOTHERM_CHECK(sum < kSumLimit);
}

std::vector<int64_t> IntegerModel::ValueInteger(const Layer& layer,
                                                const std::vector<int64_t>& x) const {
  std::vector<int64_t> out(static_cast<size_t>(layer.v.rows));
  for (int64_t r = 0; r < layer.v.rows; ++r) {
    double sum = 0;
    for (int64_t i = num_anchors_; i < layer.v.columns; ++i) {
      sum += layer.v.at(r, i) * static_cast<double>(x[static_cast<size_t>(i)]);
    }
    out[static_cast<size_t>(r)] = static_cast<int64_t>(sum);
  }
  return out;
}

std::vector<int64_t> IntegerModel::AttendInteger(const Layer& layer,
                                                 const std::vector<std::vector<int64_t>>& values,
                                                 const std::vector<int64_t>& x,
                                                 int64_t position) const {
  const int64_t dim = options_.model_dim;
  const int64_t group = options_.num_q_heads / options_.num_kv_heads;
  std::vector<int64_t> heads(static_cast<size_t>(dim));
  for (int64_t h = 0; h < options_.num_q_heads; ++h) {
    const HeadTable& table = layer.heads[static_cast<size_t>(h)];
    const size_t bit = x[static_cast<size_t>(table.bit)] > 0 ? 1 : 0;
    const int64_t from = position - table.win[bit][static_cast<size_t>(position)];
    for (int64_t i = 0; i < head_dim_; ++i) {
      heads[static_cast<size_t>(h * head_dim_ + i)] =
          values[static_cast<size_t>(from)][static_cast<size_t>(h / group * head_dim_ + i)];
    }
  }
  std::vector<int64_t> out(static_cast<size_t>(dim));
  for (int64_t r = 0; r < dim; ++r) {
    for (int64_t c = 0; c < dim; ++c) {
      out[static_cast<size_t>(r)] +=
          static_cast<int64_t>(layer.o.at(r, c)) * heads[static_cast<size_t>(c)];
    }
  }
  return out;
}

std::vector<int64_t> IntegerModel::FfnInteger(const Layer& layer,
                                              const std::vector<int64_t>& x) const {
  const int64_t dim = options_.model_dim;
  std::vector<int64_t> z = x;
  for (int64_t i = 0; i < num_anchors_; ++i) z[static_cast<size_t>(i)] = 0;
  z[kOne16] *= 16;
  std::vector<int64_t> out(static_cast<size_t>(dim));
  for (int64_t n = 0; n < options_.ffn_dim; ++n) {
    int64_t gate = 0, up = 0;
    for (int64_t i = 0; i < dim; ++i) {
      gate += static_cast<int64_t>(layer.gate.at(n, i)) * z[static_cast<size_t>(i)];
      up += static_cast<int64_t>(layer.up.at(n, i)) * z[static_cast<size_t>(i)];
    }
    if (gate <= 0) continue;
    for (int64_t i = 0; i < dim; ++i) {
      out[static_cast<size_t>(i)] += gate * up * static_cast<int64_t>(layer.down.at(n, i));
    }
  }
  return out;
}

absl::Status IntegerModel::Write(const std::string& path, DType dtype) const {
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<GgufWriter> writer,
                            GgufWriter::Create(path, /*powerinfer=*/true));
  const auto u32 = [&](absl::string_view key, int64_t value) {
    writer->AddUint32(key, static_cast<uint32_t>(value));
  };
  writer->AddString("general.architecture", "llama");
  writer->AddString("general.name", absl::StrCat("integer-", options_.model_dim, "-",
                                                 options_.num_layers, "-", options_.seed));
  u32("llama.context_length", options_.context_length);
  u32("llama.embedding_length", options_.model_dim);
  u32("llama.block_count", options_.num_layers);
  u32("llama.feed_forward_length", options_.ffn_dim);
  u32("llama.attention.head_count", options_.num_q_heads);
  u32("llama.attention.head_count_kv", options_.num_kv_heads);
  u32("llama.rope.dimension_count", head_dim_);
  writer->AddFloat("llama.attention.layer_norm_rms_epsilon", static_cast<float>(kEps));
  writer->AddFloat("llama.rope.freq_base", 10000.0f);
  writer->AddFloat("powerinfer.sparse_threshold", 0.0f);
  // 256 single bytes, then whole words "<wN>".
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  int next_letter = 256;
  for (int64_t t = 0; t < options_.vocab_size; ++t) {
    if (t >= 256) {
      tokens.push_back(absl::StrCat("<w", t, ">"));
      types.push_back(4);
      continue;
    }
    const bool plain = (t >= 33 && t <= 126) || (t >= 161 && t <= 172) || t >= 174;
    const int64_t letter = plain ? t : next_letter++;
    std::string text;
    if (letter < 0x80) {
      text.push_back(static_cast<char>(letter));
    } else {
      text.push_back(static_cast<char>(0xc0 | (letter >> 6)));
      text.push_back(static_cast<char>(0x80 | (letter & 0x3f)));
    }
    tokens.push_back(text);
    types.push_back(1);
  }
  writer->AddString("tokenizer.ggml.model", "gpt2");
  writer->AddString("tokenizer.ggml.pre", "gpt-2");
  writer->AddStrings("tokenizer.ggml.tokens", tokens);
  writer->AddInts("tokenizer.ggml.token_type", types);
  writer->AddStrings("tokenizer.ggml.merges", std::vector<std::string>());
  writer->AddBool("tokenizer.ggml.add_bos_token", false);

  struct Entry {
    std::string name;
    const Matrix* matrix;
    const std::vector<float>* vector;
  };
  std::vector<Entry> entries = {{"token_embd.weight", &embedding_, nullptr},
                                {"output_norm.weight", nullptr, &output_norm_}};
  if (!options_.tied) entries.push_back({"output.weight", &head_, nullptr});
  for (size_t l = 0; l < layers_.size(); ++l) {
    const Layer& layer = layers_[l];
    const auto name = [l](absl::string_view stem) {
      return absl::StrCat("blk.", l, ".", stem, ".weight");
    };
    entries.push_back({name("attn_norm"), nullptr, &attn_norm_});
    entries.push_back({name("ffn_norm"), nullptr, &ffn_norm_});
    entries.push_back({name("attn_q"), &layer.q, nullptr});
    entries.push_back({name("attn_k"), &layer.k, nullptr});
    entries.push_back({name("attn_v"), &layer.v, nullptr});
    entries.push_back({name("attn_output"), &layer.o, nullptr});
    entries.push_back({name("ffn_gate"), &layer.gate, nullptr});
    entries.push_back({name("ffn_up"), &layer.up, nullptr});
    entries.push_back({name("ffn_down_t"), &layer.down, nullptr});
    entries.push_back({name("fc1"), &layer.fc1, nullptr});
    entries.push_back({name("fc2"), &layer.fc2, nullptr});
  }
  for (const Entry& entry : entries) {
    if (entry.vector != nullptr) {
      const std::array<int64_t, 1> shape = {static_cast<int64_t>(entry.vector->size())};
      ISOTHERM_RETURN_IF_ERROR(writer->DeclareTensor(entry.name, DType::kF32, shape));
    } else {
      const std::array<int64_t, 2> shape = {entry.matrix->columns, entry.matrix->rows};
      ISOTHERM_RETURN_IF_ERROR(writer->DeclareTensor(entry.name, dtype, shape));
    }
  }
  for (const Entry& entry : entries) {
    if (entry.vector != nullptr) {
      ISOTHERM_RETURN_IF_ERROR(writer->Write(std::as_bytes(std::span(*entry.vector))));
    } else {
      std::vector<std::byte> bytes;
      AppendExact(entry.matrix->values, dtype, bytes);
      ISOTHERM_RETURN_IF_ERROR(writer->Write(bytes));
    }
  }
  return writer->Finish();
}

std::vector<int32_t> IntegerModel::Golden(
    const std::vector<int32_t>& prompt, int64_t steps,
    std::vector<std::vector<std::vector<int64_t>>>* residual) const {
  const int64_t dim = options_.model_dim;
  std::vector<std::vector<std::vector<int64_t>>> values(
      layers_.size());  // [layer][position][kv_dim]
  std::vector<int32_t> ids = prompt, out;
  for (size_t position = 0; static_cast<int64_t>(out.size()) < steps; ++position) {
    std::vector<int64_t> x(static_cast<size_t>(dim));
    for (int64_t i = 0; i < dim; ++i)
      x[static_cast<size_t>(i)] = static_cast<int64_t>(embedding_.at(ids[position], i));
    std::vector<std::vector<int64_t>> trace;
    for (size_t l = 0; l < layers_.size(); ++l) {
      values[l].push_back(ValueInteger(layers_[l], x));
      const std::vector<int64_t> attention =
          AttendInteger(layers_[l], values[l], x, static_cast<int64_t>(position));
      for (size_t i = 0; i < x.size(); ++i) x[i] += attention[i];
      trace.push_back(x);
      const std::vector<int64_t> ffn = FfnInteger(layers_[l], x);
      for (size_t i = 0; i < x.size(); ++i) x[i] += ffn[i];
      trace.push_back(x);
    }
    for (size_t i = 0; i < x.size(); ++i)
      ISOTHERM_CHECK(static_cast<double>(std::abs(x[i])) <= bound_[i]);
    if (residual != nullptr) residual->push_back(std::move(trace));
    if (position + 1 < ids.size()) continue;
    double best = -INFINITY;
    int32_t best_id = 0;
    for (int64_t t = 0; t < options_.vocab_size; ++t) {
      double logit = 0;
      for (int64_t i = 0; i < dim; ++i) {
        const size_t s = static_cast<size_t>(i);
        logit += head_.at(t, i) * head_scale_[s] * static_cast<double>(x[s]);
      }
      ISOTHERM_CHECK(logit != best);
      if (logit > best) {
        best = logit;
        best_id = static_cast<int32_t>(t);
      }
    }
    ids.push_back(best_id);
    out.push_back(best_id);
  }
  return out;
}

std::vector<std::vector<int32_t>> IntegerModel::Prompts(uint64_t seed, int count) const {
  Rng rng(seed);
  std::vector<std::vector<int32_t>> prompts;
  for (int i = 0; i < count; ++i) {
    std::vector<int32_t> prompt(1 + rng() % 39);
    for (int32_t& id : prompt)
      id = static_cast<int32_t>(rng() % static_cast<uint64_t>(options_.vocab_size));
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

}  // namespace isotherm::reference
