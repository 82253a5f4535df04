#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "models/quantize/block_codec.h"
#include "tests/models/gguf/gguf_bytes.h"

namespace isotherm {

// A small model in memory, with every key and tensor open to a test's changes.
struct TinyModel {
  static constexpr int64_t kLayers = 2, kDim = 64, kFfn = 96, kHeads = 4, kKvHeads = 2;
  static constexpr int64_t kHeadDim = 16, kVocab = 11, kContext = 128;

  struct Tensor {
    std::vector<int64_t> shape;  // fastest first
    DType dtype = DType::kF32;
    bool transposed = false;  // holds what Weight() gives with row and column exchanged
  };

  // A value of a key as in a file: type tag and bytes.
  template <typename T>
  static std::string Value(uint32_t tag, T value) {
    return GgufBytes().Put(tag).Put(value).bytes();
  }
  static std::string Text(const std::string& text) {
    return GgufBytes().Put<uint32_t>(8).Text(text).bytes();
  }

  // architecture: llama, bamboo, falcon (with the second norm) or opt.
  explicit TinyModel(bool is_powerinfer, DType dtype = DType::kF16,
                     const std::string& architecture = "llama")
      : powerinfer(is_powerinfer) {
    const bool falcon = architecture == "falcon", opt = architecture == "opt";
    keys = {{"general.architecture", Text(architecture)}, {"general.name", Text("tiny")}};
    const auto key = [&](const std::string& suffix, std::string value) {
      keys[architecture + "." + suffix] = std::move(value);
    };
    key("block_count", Value<uint32_t>(4, kLayers));
    key("context_length", Value<uint32_t>(4, kContext));
    key("embedding_length", Value<uint32_t>(4, kDim));
    key("feed_forward_length", Value<uint32_t>(4, kFfn));
    key("attention.head_count", Value<uint32_t>(4, kHeads));
    key("attention.head_count_kv", Value<uint32_t>(4, kKvHeads));
    if (falcon) key("tensor_data_layout", Text("jploski"));
    if (!opt) {
      key(falcon ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon",
          Value<float>(6, 1e-5f));
      key("rope.dimension_count", Value<uint32_t>(4, kHeadDim));
      key("rope.freq_base", Value<float>(6, 10000.0f));
    }
    if (powerinfer) keys["powerinfer.sparse_threshold"] = Value<float>(6, 0.25f);
    const auto norm = [&](const std::string& stem) {
      tensors[stem + ".weight"] = {{kDim}};
      if (falcon || opt) tensors[stem + ".bias"] = {{kDim}};
    };
    tensors["token_embd.weight"] = {{kDim, kVocab}, dtype};
    if (opt) tensors["position_embd.weight"] = {{kDim, kContext}, dtype};
    norm("output_norm");
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      const std::string prefix = absl::StrCat("blk.", layer, ".");
      const auto add = [&](const std::string& stem, std::vector<int64_t> shape, DType type,
                           int64_t bias = 0) {
        tensors[prefix + stem + ".weight"] = {std::move(shape), type};
        if (opt && bias > 0) tensors[prefix + stem + ".bias"] = {{bias}};
      };
      norm(prefix + "attn_norm");
      norm(prefix + (falcon ? "attn_norm_2" : "ffn_norm"));
      constexpr int64_t kQ = kHeads * kHeadDim, kKv = kKvHeads * kHeadDim;
      if (falcon) {
        add("attn_qkv", {kDim, kQ + 2 * kKv}, dtype);
      } else {
        add("attn_q", {kDim, kQ}, dtype, kQ);
        add("attn_k", {kDim, kKv}, dtype, kKv);
        add("attn_v", {kDim, kKv}, dtype, kKv);
      }
      add("attn_output", {kQ, kDim}, dtype, kDim);
      if (!falcon && !opt) add("ffn_gate", {kDim, kFfn}, dtype);
      add("ffn_up", {kDim, kFfn}, dtype, kFfn);
      if (powerinfer) {
        const int64_t rank = 32 * (layer + 1);  // differs by layer
        add("ffn_down_t", {kDim, kFfn}, dtype, kDim);
        add("fc1", {kDim, rank}, DType::kQ8_0);
        add("fc2", {rank, kFfn}, DType::kQ8_0);
      } else {
        add("ffn_down", {kFfn, kDim}, dtype, kDim);
        tensors[prefix + "ffn_down.weight"].transposed = true;
      }
    }
  }

  // Multiples of 1/64 in -1 .. 1, the same for ffn_down and its transposition.
  static float Weight(absl::string_view name, int64_t row, int64_t column) {
    uint64_t hash = 1469598103934665603u;
    for (const char c : name.substr(0, name.find("_down"))) {
      hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
    }
    hash ^= static_cast<uint64_t>(row) * 0x9e3779b97f4a7c15u;
    hash ^= static_cast<uint64_t>(column) * 0xc2b2ae3d27d4eb4fu;
    hash ^= hash >> 29;
    hash *= 0xbf58476d1ce4e5b9u;
    hash ^= hash >> 32;
    return static_cast<float>(static_cast<int64_t>(hash % 129) - 64) / 64.0f;
  }

  static std::string Encoded(const std::string& name, const Tensor& tensor) {
    int64_t rows = 1;
    for (size_t d = 1; d < tensor.shape.size(); ++d) rows *= tensor.shape[d];
    const int64_t columns = tensor.shape[0];
    const int64_t row_bytes = RowBytes(tensor.dtype, columns).value();
    std::string bytes(static_cast<size_t>(rows * row_bytes), '\0');
    std::vector<float> row(static_cast<size_t>(columns));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        row[static_cast<size_t>(c)] = tensor.transposed ? Weight(name, c, r) : Weight(name, r, c);
      }
      ISOTHERM_CHECK(
          EncodeRow(tensor.dtype, row, reinterpret_cast<std::byte*>(bytes.data()) + r * row_bytes)
              .ok());
    }
    return bytes;
  }

  std::string Bytes() const {
    GgufBytes file;
    file.Header(tensors.size(), keys.size(), 3, powerinfer ? "PWRI" : "GGUF");
    for (const auto& [key, value] : keys) file.Text(key).Raw(value);
    GgufBytes data;
    for (const auto& [name, tensor] : tensors) {
      data.Pad(alignment);
      file.Text(name).Put<uint32_t>(static_cast<uint32_t>(tensor.shape.size()));
      for (const int64_t size : tensor.shape) file.Put<int64_t>(size);
      file.Put(static_cast<uint32_t>(tensor.dtype)).Put<uint64_t>(data.bytes().size());
      const auto changed = contents.find(name);
      data.Raw(changed != contents.end() ? changed->second : Encoded(name, tensor));
    }
    return file.Pad(alignment).Raw(data.bytes()).bytes();
  }

  bool powerinfer;
  size_t alignment = 32;  // other ones need the key, too
  std::map<std::string, std::string> keys;
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> contents;  // instead of the encoded weights
};

}  // namespace isotherm
