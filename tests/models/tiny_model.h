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

// A small llama model in memory, with every key and tensor open to a test's changes.
struct TinyModel {
  static constexpr int64_t kLayers = 2, kDim = 64, kFfn = 96, kHeads = 4, kKvHeads = 2;
  static constexpr int64_t kHeadDim = 16, kVocab = 11;

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

  explicit TinyModel(bool is_powerinfer, DType dtype = DType::kF16) : powerinfer(is_powerinfer) {
    keys = {{"general.architecture", Text("llama")},
            {"general.name", Text("tiny")},
            {"llama.block_count", Value<uint32_t>(4, kLayers)},
            {"llama.context_length", Value<uint32_t>(4, 128)},
            {"llama.embedding_length", Value<uint32_t>(4, kDim)},
            {"llama.feed_forward_length", Value<uint32_t>(4, kFfn)},
            {"llama.attention.head_count", Value<uint32_t>(4, kHeads)},
            {"llama.attention.head_count_kv", Value<uint32_t>(4, kKvHeads)},
            {"llama.attention.layer_norm_rms_epsilon", Value<float>(6, 1e-5f)},
            {"llama.rope.dimension_count", Value<uint32_t>(4, kHeadDim)},
            {"llama.rope.freq_base", Value<float>(6, 10000.0f)}};
    if (powerinfer) keys["powerinfer.sparse_threshold"] = Value<float>(6, 0.25f);
    tensors["token_embd.weight"] = {{kDim, kVocab}, dtype};
    tensors["output_norm.weight"] = {{kDim}};
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      const auto add = [&](const char* stem, std::vector<int64_t> shape, DType type) {
        tensors[absl::StrCat("blk.", layer, ".", stem, ".weight")] = {std::move(shape), type};
      };
      add("attn_norm", {kDim}, DType::kF32);
      add("ffn_norm", {kDim}, DType::kF32);
      add("attn_q", {kDim, kHeads * kHeadDim}, dtype);
      add("attn_k", {kDim, kKvHeads * kHeadDim}, dtype);
      add("attn_v", {kDim, kKvHeads * kHeadDim}, dtype);
      add("attn_output", {kHeads * kHeadDim, kDim}, dtype);
      add("ffn_gate", {kDim, kFfn}, dtype);
      add("ffn_up", {kDim, kFfn}, dtype);
      if (powerinfer) {
        const int64_t rank = 32 * (layer + 1);  // differs by layer
        add("ffn_down_t", {kDim, kFfn}, dtype);
        add("fc1", {kDim, rank}, DType::kQ8_0);
        add("fc2", {rank, kFfn}, DType::kQ8_0);
      } else {
        add("ffn_down", {kFfn, kDim}, dtype);
        tensors[absl::StrCat("blk.", layer, ".ffn_down.weight")].transposed = true;
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
      data.Pad();
      file.Text(name).Put<uint32_t>(static_cast<uint32_t>(tensor.shape.size()));
      for (const int64_t size : tensor.shape) file.Put<int64_t>(size);
      file.Put(static_cast<uint32_t>(tensor.dtype)).Put<uint64_t>(data.bytes().size());
      const auto changed = contents.find(name);
      data.Raw(changed != contents.end() ? changed->second : Encoded(name, tensor));
    }
    return file.Pad().Raw(data.bytes()).bytes();
  }

  bool powerinfer;
  std::map<std::string, std::string> keys;
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> contents;  // instead of the encoded weights
};

}  // namespace isotherm
