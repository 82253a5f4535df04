#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/tensor/half.h"
#include "models/gguf/gguf_file.h"
#include "models/quantize/block_codec.h"

namespace isotherm::bench {

// Plain loops over a synthetic model file, llama or falcon, in F32 with z rounded to 16 bits as the
// engine does. Keeps what the predictor and the gate said of every neuron.
class SyntheticForward {
 public:
  explicit SyntheticForward(const std::string& path) : file_(*GgufFile::Open(path)) {
    falcon_ = *file_->GetString("general.architecture") == "falcon";
    const std::string a = falcon_ ? "falcon." : "llama.";
    layers_ = *file_->GetInt(a + "block_count");
    dim_ = *file_->GetInt(a + "embedding_length");
    heads_ = *file_->GetInt(a + "attention.head_count");
    kv_heads_ = *file_->GetInt(a + "attention.head_count_kv");
    embedding_ = Read("token_embd.weight");
    head_ = Read("output.weight");
    for (int64_t l = 0; l < layers_; ++l) {
      const auto read = [&](const char* stem) { return Read(absl::StrCat("blk.", l, ".", stem)); };
      Layer layer;
      if (falcon_) {
        layer.qkv = read("attn_qkv.weight");
        layer.gate = read("ffn_up.weight");
      } else {
        layer.qkv = read("attn_q.weight");
        for (const char* stem : {"attn_k.weight", "attn_v.weight"}) {
          for (auto& row : read(stem)) layer.qkv.push_back(std::move(row));
        }
        layer.gate = read("ffn_gate.weight");
        layer.up = read("ffn_up.weight");
      }
      layer.output = read("attn_output.weight");
      layer.down = read("ffn_down_t.weight");
      layer.fc1 = read("fc1.weight");
      layer.fc2 = read("fc2.weight");
      blocks_.push_back(std::move(layer));
    }
  }

  struct Neurons {
    std::vector<float> score, gate;  // [ffn_dim]
  };
  struct Token {
    std::vector<Neurons> layers;
    std::vector<float> residual;
    std::vector<float> logits;
  };

  const std::vector<float>& embedding(int32_t id) const {
    return embedding_[static_cast<size_t>(id)];
  }

  std::vector<Token> Run(const std::vector<int32_t>& tokens) const {
    std::vector<Token> out;
    std::vector<std::vector<std::vector<float>>> keys(blocks_.size()), values(blocks_.size());
    for (const int32_t id : tokens) {
      Token token;
      std::vector<float> x = embedding_[static_cast<size_t>(id)];
      for (size_t l = 0; l < blocks_.size(); ++l) {
        const Layer& layer = blocks_[l];
        const std::vector<float> h = Normed(x);
        std::vector<float> f = x;
        Add(f, Times(layer.output, Attend(Times(layer.qkv, h), keys[l], values[l])));
        const std::vector<float>& p = falcon_ ? x : f;  // what the predictor sees
        const std::vector<float> z = falcon_ ? h : Normed(f);
        std::vector<float> hidden = Times(layer.fc1, p);
        for (float& v : hidden) v = std::max(0.0f, v);
        Neurons neurons{.score = Times(layer.fc2, hidden), .gate = Times(layer.gate, z)};
        for (size_t n = 0; n < layer.gate.size(); ++n) {
          if (neurons.score[n] < 0 || neurons.gate[n] <= 0) continue;
          float a = neurons.gate[n];
          if (!falcon_) a *= Dot(layer.up[n], z);
          for (size_t i = 0; i < f.size(); ++i) f[i] += a * layer.down[n][i];
        }
        token.layers.push_back(std::move(neurons));
        x = std::move(f);
      }
      token.logits = Times(head_, Normed(x));
      token.residual = std::move(x);
      out.push_back(std::move(token));
    }
    return out;
  }

 private:
  using Rows = std::vector<std::vector<float>>;
  struct Layer {
    Rows qkv, output, gate, up, down, fc1, fc2;
  };

  Rows Read(const std::string& name) const {
    const GgufTensor* tensor = file_->FindTensor(name);
    if (tensor == nullptr) std::abort();
    const auto dtype = static_cast<DType>(tensor->ggml_type);
    bf16_ = bf16_ || dtype == DType::kBF16;
    std::vector<std::byte> bytes(static_cast<size_t>(tensor->bytes));
    if (!file_->Read(*tensor, 0, bytes).ok()) std::abort();
    const int64_t row_bytes = *RowBytes(dtype, tensor->columns());
    Rows rows(static_cast<size_t>(tensor->rows()));
    for (size_t r = 0; r < rows.size(); ++r) {
      rows[r].resize(static_cast<size_t>(tensor->columns()));
      if (!DecodeRow(dtype, bytes.data() + static_cast<int64_t>(r) * row_bytes, rows[r]).ok())
        std::abort();
    }
    return rows;
  }

  static void Add(std::vector<float>& x, const std::vector<float>& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }
  static float Dot(const std::vector<float>& a, const std::vector<float>& b) {
    // Eight sums, so that the compiler may use vectors.
    float sum[8] = {};
    const size_t whole = a.size() / 8 * 8;
    for (size_t i = 0; i < whole; i += 8) {
      for (size_t j = 0; j < 8; ++j) sum[j] += a[i + j] * b[i + j];
    }
    for (size_t i = whole; i < a.size(); ++i) sum[0] += a[i] * b[i];
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
  }
  static std::vector<float> Times(const Rows& w, const std::vector<float>& x) {
    std::vector<float> y;
    y.reserve(w.size());
    for (const auto& row : w) y.push_back(Dot(row, x));
    return y;
  }
  std::vector<float> Normed(std::vector<float> x) const {
    double mean = 0;
    for (const float v : x) mean += static_cast<double>(v);
    mean = falcon_ ? mean / static_cast<double>(x.size()) : 0;
    double square = 0;
    for (const float v : x)
      square += (static_cast<double>(v) - mean) * (static_cast<double>(v) - mean);
    const double scale = 1 / std::sqrt(square / static_cast<double>(x.size()) + 1e-5);
    for (float& v : x) {
      const auto z = static_cast<float>((static_cast<double>(v) - mean) * scale);
      v = bf16_ ? Bf16ToF32(F32ToBf16(z)) : F16ToF32(F32ToF16(z));
    }
    return x;
  }
  // Without position: rotating queries and keys changes which values are mixed, not how many.
  std::vector<float> Attend(const std::vector<float>& qkv, Rows& keys, Rows& values) const {
    const int64_t head_dim = dim_ / heads_;
    const int64_t kv_dim = head_dim * kv_heads_;
    keys.emplace_back(qkv.begin() + dim_, qkv.begin() + dim_ + kv_dim);
    values.emplace_back(qkv.begin() + dim_ + kv_dim, qkv.end());
    std::vector<float> out(static_cast<size_t>(dim_));
    for (int64_t head = 0; head < heads_; ++head) {
      const int64_t kv = head / (heads_ / kv_heads_) * head_dim;
      std::vector<float> weight;
      float total = 0;
      for (const auto& key : keys) {
        float dot = 0;
        for (int64_t i = 0; i < head_dim; ++i)
          dot += qkv[static_cast<size_t>(head * head_dim + i)] * key[static_cast<size_t>(kv + i)];
        weight.push_back(std::exp(dot / std::sqrt(static_cast<float>(head_dim))));
        total += weight.back();
      }
      for (size_t t = 0; t < values.size(); ++t) {
        for (int64_t i = 0; i < head_dim; ++i)
          out[static_cast<size_t>(head * head_dim + i)] +=
              weight[t] / total * values[t][static_cast<size_t>(kv + i)];
      }
    }
    return out;
  }

  std::unique_ptr<GgufFile> file_;
  bool falcon_ = false;
  mutable bool bf16_ = false;
  int64_t layers_ = 0, dim_ = 0, heads_ = 0, kv_heads_ = 0;
  Rows embedding_, head_;
  std::vector<Layer> blocks_;
};

}  // namespace isotherm::bench
