#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "common/tensor/half.h"
#include "models/model_file.h"
#include "tests/reference/dequantize.h"

namespace isotherm::reference {

// The whole maths of a llama model in plain loops and double sums, rounding where the definition
// rounds: normed inputs, keys and values to 16 bits. Recomputes every position; for tiny models.
class LlamaReference {
 public:
  explicit LlamaReference(const ModelFile& model) : model_(model), c_(model.config()) {
    embedding_ = Read("token_embd.weight");
    head_ = c_.tied_output ? embedding_ : Read("output.weight");
    output_norm_ = *model.ReadVector("output_norm.weight");
    for (int64_t l = 0; l < c_.num_layers; ++l) {
      const auto name = [l](const char* stem) { return ModelFile::LayerTensor(l, stem); };
      Layer layer{.q = Read(name("attn_q")),
                  .k = Read(name("attn_k")),
                  .v = Read(name("attn_v")),
                  .o = Read(name("attn_output"))};
      if (c_.sparse) {
        layer.fc1 = Read(name("fc1"));
        layer.fc2 = Read(name("fc2"));
      }
      layer.attn_norm = *model.ReadVector(name("attn_norm"));
      layer.ffn_norm = *model.ReadVector(name("ffn_norm"));
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
      for (size_t l = 0; l < layers_.size(); ++l) {
        const Layer& layer = layers_[l];
        const std::vector<double> h = Rounded(Norm(x, layer.attn_norm));
        std::vector<double> q = Times(layer.q, h), k = Times(layer.k, h);
        Rotate(q, static_cast<double>(p));
        Rotate(k, static_cast<double>(p));
        keys[l].push_back(Rounded(k));
        values[l].push_back(Rounded(Times(layer.v, h)));
        Add(x, Times(layer.o, Attend(q, keys[l], values[l])));
        const std::vector<double> z = Rounded(Norm(x, layer.ffn_norm));
        Add(x, Neurons(layer, x, z, exact, &result));
      }
      result.logits.push_back(Times(head_, Rounded(Norm(x, output_norm_))));
    }
    return result;
  }

 private:
  using Rows = std::vector<std::vector<double>>;
  struct Layer {
    Rows q, k, v, o, fc1, fc2, gate, up, down;  // down: a row is a neuron's
    std::vector<float> attn_norm, ffn_norm;
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

  void ReadNeurons(int64_t l, Layer* layer) const {
    const BundleLayout& b = model_.bundle_layout();
    std::vector<std::byte> bytes(static_cast<size_t>(b.layer_bytes()));
    if (!model_.PackBundles(l, 0, b.num_neurons, bytes).ok()) std::abort();
    for (int64_t n = 0; n < b.num_neurons; ++n) {
      Rows* const parts[] = {&layer->gate, &layer->up, &layer->down};
      for (int64_t part = 0; part < 3; ++part) {
        parts[part]->emplace_back();
        const std::byte* row = bytes.data() + n * b.bundle_bytes + part * b.row_bytes;
        for (int64_t k = 0; k < b.model_dim; ++k)
          parts[part]->back().push_back(Element(b.dtype, row, k));
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
  static std::vector<double> Times(const Rows& w, const std::vector<double>& x) {
    std::vector<double> y;
    for (const auto& row : w) y.push_back(Dot(row, x));
    return y;
  }
  std::vector<double> Norm(std::vector<double> x, const std::vector<float>& weight) const {
    const double scale =
        1 / std::sqrt(Dot(x, x) / static_cast<double>(x.size()) + static_cast<double>(c_.norm_eps));
    for (size_t i = 0; i < x.size(); ++i) x[i] *= scale * static_cast<double>(weight[i]);
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
        double& a = heads[at + static_cast<size_t>(2 * i)];
        double& b = heads[at + static_cast<size_t>(2 * i + 1)];
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
    for (size_t n = 0; n < layer.gate.size(); ++n) {
      if (c_.sparse && !exact) {
        const double margin = scores[n] - static_cast<double>(c_.sparse_threshold);
        result->narrowest = std::min(result->narrowest, std::abs(margin));
        if (margin < 0) continue;
      }
      ++result->active;
      double a = Dot(layer.gate[n], z);
      a = c_.activation == Activation::kSilu ? a / (1 + std::exp(-a)) : std::max(0.0, a);
      a *= Dot(layer.up[n], z);
      for (size_t i = 0; i < y.size(); ++i) y[i] += a * layer.down[n][i];
    }
    return y;
  }

  const ModelFile& model_;
  const ModelConfig c_;
  Rows embedding_, head_;
  std::vector<float> output_norm_;
  std::vector<Layer> layers_;
};

}  // namespace isotherm::reference
