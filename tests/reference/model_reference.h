#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <string>
#include <vector>

#include "common/tensor/half.h"
#include "models/model_file.h"
#include "tests/reference/dequantize.h"
#include "tests/reference/sparse_ffn.h"

namespace isotherm::reference {

// The whole maths of a model in plain loops and double sums, rounding where the definition rounds:
// normed inputs, keys and values to 16 bits. Recomputes every position; for tiny models.
//
// Which graph an architecture has is written down here once more, by its name, and not taken from
// the config's fields that the backends read: llama and bamboo, falcon, opt.
class ModelReference {
 public:
  explicit ModelReference(const ModelFile& model)
      : model_(model),
        c_(model.config()),
        bamboo_(c_.architecture_name == "bamboo"),
        falcon_(c_.architecture_name == "falcon"),
        opt_(c_.architecture_name == "opt"),
        gated_(!falcon_ && !opt_) {
    embedding_ = Read("token_embd.weight");
    head_ = model.Has("output.weight") ? Read("output.weight") : embedding_;
    if (opt_) positions_ = Read("position_embd.weight");
    output_norm_ = ReadNorm("output_norm");
    for (int64_t l = 0; l < c_.num_layers; ++l) {
      const std::string prefix = "blk." + std::to_string(l) + ".";
      Layer layer{.o = Read(prefix + "attn_output.weight")};
      if (falcon_) {
        SplitQkv(Read(prefix + "attn_qkv.weight"), &layer);
      } else {
        layer.q = Read(prefix + "attn_q.weight");
        layer.k = Read(prefix + "attn_k.weight");
        layer.v = Read(prefix + "attn_v.weight");
      }
      if (opt_) {
        const std::string down = model.gguf().is_powerinfer() ? "ffn_down_t" : "ffn_down";
        layer.q_bias = ReadBias(prefix + "attn_q.bias");
        layer.k_bias = ReadBias(prefix + "attn_k.bias");
        layer.v_bias = ReadBias(prefix + "attn_v.bias");
        layer.o_bias = ReadBias(prefix + "attn_output.bias");
        layer.up_bias = ReadBias(prefix + "ffn_up.bias");
        layer.down_bias = ReadBias(prefix + down + ".bias");
      }
      if (c_.sparse) {
        layer.fc1 = Read(prefix + "fc1.weight");
        layer.fc2 = Read(prefix + "fc2.weight");
      }
      const bool second = model.Has(prefix + "attn_norm_2.weight");
      layer.attention_norm = ReadNorm(prefix + (second ? "attn_norm_2" : "attn_norm"));
      layer.ffn_norm = ReadNorm(prefix + (falcon_ ? "attn_norm" : "ffn_norm"));
      ReadNeurons(l, &layer);
      layers_.push_back(std::move(layer));
    }
  }

  struct Result {
    std::vector<std::vector<double>> logits;  // [positions][vocab_size]
    int64_t active = 0;                       // summed over positions and layers
    double narrowest = INFINITY;              // smallest |score - threshold| met
  };

  // exact: every neuron is active, whatever the predictor says.
  Result Forward(const std::vector<int32_t>& tokens, bool exact = false) const {
    Result result;
    std::vector<std::vector<std::vector<double>>> keys(layers_.size()), values(layers_.size());
    for (size_t p = 0; p < tokens.size(); ++p) {
      std::vector<double> x = embedding_[static_cast<size_t>(tokens[p])];
      if (opt_) Add(x, positions_[p + 2]);
      for (size_t l = 0; l < layers_.size(); ++l) {
        const Layer& layer = layers_[l];
        const std::vector<double> input = x;
        const std::vector<double> h = Rounded(Norm(x, layer.attention_norm));
        std::vector<double> q = Times(layer.q, h, layer.q_bias);
        std::vector<double> k = Times(layer.k, h, layer.k_bias);
        if (!opt_) {
          Rotate(q, static_cast<double>(p));
          Rotate(k, static_cast<double>(p));
        }
        keys[l].push_back(Rounded(k));
        values[l].push_back(Rounded(Times(layer.v, h, layer.v_bias)));
        Add(x, Times(layer.o, Attend(q, keys[l], values[l]), layer.o_bias));
        const std::vector<double>& f = falcon_ ? input : x;
        const std::vector<double> z = Rounded(Norm(f, layer.ffn_norm));
        Add(x, Neurons(layer, f, z, exact, &result));
      }
      result.logits.push_back(Times(head_, Rounded(Norm(x, output_norm_))));
    }
    return result;
  }

 private:
  using Rows = std::vector<std::vector<double>>;
  struct NormWeights {
    std::vector<double> weight, bias;  // bias empty: an RMS norm
  };
  struct Layer {
    Rows q, k, v, o, fc1, fc2, gate, up, down;  // down: a row is a neuron's
    std::vector<double> q_bias, k_bias, v_bias, o_bias, up_bias, down_bias;  // of opt
    NormWeights attention_norm, ffn_norm;
  };

  Rows Read(const std::string& name) const {
    const Matrix matrix = *model_.ReadMatrix(name);
    Rows rows(static_cast<size_t>(matrix.rows));
    for (int64_t r = 0; r < matrix.rows; ++r) {
      for (int64_t k = 0; k < matrix.columns; ++k) {
        rows[static_cast<size_t>(r)].push_back(
            Element(matrix.dtype, matrix.data() + r * matrix.row_bytes, k));
      }
    }
    return rows;
  }

  std::vector<double> ReadBias(const std::string& name) const {
    const std::vector<float> values = *model_.ReadVector(name);
    return {values.begin(), values.end()};
  }
  NormWeights ReadNorm(const std::string& stem) const {
    NormWeights norm{.weight = ReadBias(stem + ".weight")};
    if (falcon_ || opt_) norm.bias = ReadBias(stem + ".bias");
    return norm;
  }
  // Rows: all Q, all K, all V.
  void SplitQkv(const Rows& all, Layer* layer) const {
    const int64_t q = c_.num_q_heads * c_.head_dim, kv = c_.num_kv_heads * c_.head_dim;
    layer->q.assign(all.begin(), all.begin() + q);
    layer->k.assign(all.begin() + q, all.begin() + q + kv);
    layer->v.assign(all.begin() + q + kv, all.end());
  }

  void ReadNeurons(int64_t l, Layer* layer) const {
    const BundleLayout& b = model_.bundle_layout();
    std::vector<std::byte> bytes(static_cast<size_t>(b.layer_bytes()));
    if (!model_.PackBundles(l, 0, b.num_neurons, bytes).ok()) std::abort();
    for (int64_t n = 0; n < b.num_neurons; ++n) {
      std::vector<Rows*> parts = {&layer->gate, &layer->up, &layer->down};
      if (!gated_) parts.erase(parts.begin());
      const std::byte* row = bytes.data() + n * b.bundle_bytes;
      for (Rows* part : parts) {
        part->emplace_back();
        for (int64_t k = 0; k < b.model_dim; ++k) part->back().push_back(Element(b.dtype, row, k));
        row += b.row_bytes;
      }
    }
  }

  std::vector<double> Rounded(std::vector<double> v) const {
    const bool bf16 = model_.bundle_layout().dtype == DType::kBF16;
    for (double& e : v) {
      const auto f = static_cast<float>(e);
      e = bf16 ? Bf16ToF32(F32ToBf16(f)) : F16ToF32(F32ToF16(f));
    }
    return v;
  }
  static void Add(std::vector<double>& x, const std::vector<double>& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }
  static double Dot(const std::vector<double>& a, const std::vector<double>& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  }
  static std::vector<double> Times(const Rows& w, const std::vector<double>& x,
                                   const std::vector<double>& bias = {}) {
    std::vector<double> y;
    for (const auto& row : w) y.push_back(Dot(row, x));
    if (!bias.empty()) Add(y, bias);
    return y;
  }
  std::vector<double> Norm(std::vector<double> x, const NormWeights& norm) const {
    const auto n = static_cast<double>(x.size());
    if (!norm.bias.empty()) {
      const double mean = std::accumulate(x.begin(), x.end(), 0.0) / n;
      for (double& e : x) e -= mean;
    }
    const double scale = 1 / std::sqrt(Dot(x, x) / n + static_cast<double>(c_.norm_eps));
    for (size_t i = 0; i < x.size(); ++i) x[i] *= scale * norm.weight[i];
    if (!norm.bias.empty()) Add(x, norm.bias);
    return x;
  }
  void Rotate(std::vector<double>& heads, double position) const {
    for (size_t at = 0; at < heads.size(); at += static_cast<size_t>(c_.head_dim)) {
      for (int64_t i = 0; i < c_.rope_dims / 2; ++i) {
        const double angle =
            position *
            std::pow(static_cast<double>(c_.rope_freq_base),
                     -2.0 * static_cast<double>(i) / static_cast<double>(c_.rope_dims)) /
            static_cast<double>(c_.rope_scale);
        // falcon: NeoX pairs; else neighbours.
        double& a = heads[at + static_cast<size_t>(falcon_ ? i : 2 * i)];
        double& b = heads[at + static_cast<size_t>(falcon_ ? i + c_.rope_dims / 2 : 2 * i + 1)];
        const double rotated = a * std::cos(angle) - b * std::sin(angle);
        b = a * std::sin(angle) + b * std::cos(angle);
        a = rotated;
      }
    }
  }
  std::vector<double> Attend(const std::vector<double>& q, const Rows& keys,
                             const Rows& values) const {
    std::vector<double> out(q.size(), 0.0);
    for (int64_t head = 0; head < c_.num_q_heads; ++head) {
      const int64_t kv = head / (c_.num_q_heads / c_.num_kv_heads);
      std::vector<double> weight;
      double total = 0;
      for (const auto& key : keys) {
        double dot = 0;
        for (int64_t i = 0; i < c_.head_dim; ++i)
          dot += q[static_cast<size_t>(head * c_.head_dim + i)] *
                 key[static_cast<size_t>(kv * c_.head_dim + i)];
        weight.push_back(std::exp(dot / std::sqrt(static_cast<double>(c_.head_dim))));
        total += weight.back();
      }
      for (size_t t = 0; t < values.size(); ++t) {
        for (int64_t i = 0; i < c_.head_dim; ++i)
          out[static_cast<size_t>(head * c_.head_dim + i)] +=
              weight[t] / total * values[t][static_cast<size_t>(kv * c_.head_dim + i)];
      }
    }
    return out;
  }
  std::vector<double> Neurons(const Layer& layer, const std::vector<double>& f,
                              const std::vector<double>& z, bool exact, Result* result) const {
    std::vector<double> hidden, scores, y(f.size(), 0.0);
    if (c_.sparse) {
      hidden = Times(layer.fc1, f);
      for (double& h : hidden) h = std::max(0.0, h);
      scores = Times(layer.fc2, hidden);
    }
    for (size_t n = 0; n < layer.up.size(); ++n) {
      if (c_.sparse && !exact) {
        const double margin = scores[n] - static_cast<double>(c_.sparse_threshold);
        result->narrowest = std::min(result->narrowest, std::abs(margin));
        if (margin < 0) continue;
      }
      ++result->active;
      double up = Dot(layer.up[n], z), a = 0;
      if (gated_) {
        if (bamboo_) up = std::max(0.0, up);
        a = Activate(c_.activation, Dot(layer.gate[n], z)) * up;
      } else {
        a = Activate(c_.activation, opt_ ? up + layer.up_bias[n] : up);
      }
      for (size_t i = 0; i < y.size(); ++i) y[i] += a * layer.down[n][i];
    }
    if (opt_) Add(y, layer.down_bias);
    return y;
  }

  const ModelFile& model_;
  const ModelConfig c_;
  const bool bamboo_, falcon_, opt_, gated_;
  Rows embedding_, positions_, head_;
  NormWeights output_norm_;
  std::vector<Layer> layers_;
};

}  // namespace isotherm::reference
