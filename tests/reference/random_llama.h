#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "models/gguf/gguf_writer.h"
#include "models/quantize/block_codec.h"

namespace isotherm::reference {

struct RandomLlamaOptions {
  int64_t model_dim = 64;
  int64_t ffn_dim = 160;  // no multiple of a bitmap word
  int64_t num_layers = 3;
  int64_t num_q_heads = 4;
  int64_t num_kv_heads = 2;
  int64_t vocab_size = 96;
  int64_t rank = 32;
  bool sparse = true;  // with predictors and ffn_down_t, as a PowerInfer file; else a plain one
  bool tied = false;
  DType dtype = DType::kF16;  // of the matrices
  uint64_t seed = 1;
};

// Writes a model of Gaussian weights whose activations keep a size of about 1.
inline absl::Status WriteRandomLlama(const std::string& path, const RandomLlamaOptions& o) {
  ISOTHERM_ASSIGN_OR_RETURN(const auto writer, GgufWriter::Create(path, o.sparse));
  const auto u32 = [&](absl::string_view key, int64_t value) {
    writer->AddUint32(key, static_cast<uint32_t>(value));
  };
  writer->AddString("general.architecture", "llama");
  writer->AddString("general.name", absl::StrCat("random-", o.seed));
  u32("llama.context_length", 128);
  u32("llama.embedding_length", o.model_dim);
  u32("llama.block_count", o.num_layers);
  u32("llama.feed_forward_length", o.ffn_dim);
  u32("llama.attention.head_count", o.num_q_heads);
  u32("llama.attention.head_count_kv", o.num_kv_heads);
  writer->AddFloat("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  writer->AddFloat("llama.rope.freq_base", 1000.0f);
  writer->AddString("tokenizer.ggml.model", "gpt2");
  writer->AddString("tokenizer.ggml.pre", "gpt-2");
  std::vector<std::string> tokens;
  for (int64_t t = 0; t < o.vocab_size; ++t) tokens.push_back(absl::StrCat("t", t));
  writer->AddStrings("tokenizer.ggml.tokens", tokens);

  struct Tensor {
    std::string name;
    int64_t columns, rows;  // rows 0: a vector
  };
  const int64_t kv_dim = o.model_dim / o.num_q_heads * o.num_kv_heads;
  std::vector<Tensor> tensors = {{"token_embd.weight", o.model_dim, o.vocab_size},
                                 {"output_norm.weight", o.model_dim, 0}};
  if (!o.tied) tensors.push_back({"output.weight", o.model_dim, o.vocab_size});
  for (int64_t l = 0; l < o.num_layers; ++l) {
    const auto add = [&](const char* stem, int64_t columns, int64_t rows) {
      tensors.push_back({absl::StrCat("blk.", l, ".", stem, ".weight"), columns, rows});
    };
    add("attn_norm", o.model_dim, 0);
    add("ffn_norm", o.model_dim, 0);
    add("attn_q", o.model_dim, o.model_dim);
    add("attn_k", o.model_dim, kv_dim);
    add("attn_v", o.model_dim, kv_dim);
    add("attn_output", o.model_dim, o.model_dim);
    add("ffn_gate", o.model_dim, o.ffn_dim);
    add("ffn_up", o.model_dim, o.ffn_dim);
    if (o.sparse) {
      add("ffn_down_t", o.model_dim, o.ffn_dim);
      add("fc1", o.model_dim, o.rank);
      add("fc2", o.rank, o.ffn_dim);
    } else {
      add("ffn_down", o.ffn_dim, o.model_dim);
    }
  }
  for (const Tensor& t : tensors) {
    std::vector<int64_t> shape = {t.columns};
    if (t.rows > 0) shape.push_back(t.rows);
    ISOTHERM_RETURN_IF_ERROR(
        writer->DeclareTensor(t.name, t.rows > 0 ? o.dtype : DType::kF32, shape));
  }
  std::mt19937_64 rng(o.seed);
  std::normal_distribution<float> normal;
  for (const Tensor& t : tensors) {
    const DType dtype = t.rows > 0 ? o.dtype : DType::kF32;
    ISOTHERM_ASSIGN_OR_RETURN(const int64_t row_bytes, RowBytes(dtype, t.columns));
    std::vector<std::byte> bytes(static_cast<size_t>(row_bytes));
    std::vector<float> row(static_cast<size_t>(t.columns));
    for (int64_t r = 0; r < std::max<int64_t>(1, t.rows); ++r) {
      for (float& v : row) {
        v = t.rows > 0 ? normal(rng) / std::sqrt(static_cast<float>(t.columns))
                       : 1.0f + 0.1f * normal(rng);
      }
      ISOTHERM_RETURN_IF_ERROR(EncodeRow(dtype, row, bytes.data()));
      ISOTHERM_RETURN_IF_ERROR(writer->Write(bytes));
    }
  }
  return writer->Finish();
}

}  // namespace isotherm::reference
