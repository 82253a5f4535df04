#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "models/gguf/gguf_writer.h"
#include "models/quantize/block_codec.h"

namespace isotherm::reference {

struct RandomModelOptions {
  std::string architecture = "llama";  // llama, bamboo, falcon or opt
  int64_t model_dim = 64;
  int64_t ffn_dim = 160;  // no multiple of a bitmap word
  int64_t num_layers = 3;
  int64_t num_q_heads = 4;
  int64_t num_kv_heads = 2;
  int64_t rope_dims = 0;  // 0: the key is left out
  int64_t vocab_size = 96;
  int64_t rank = 32;
  bool sparse = true;  // with predictors and ffn_down_t, as a PowerInfer file; else a plain one
  bool tied = false;   // opt always is
  bool second_norm = false;   // falcon: attn_norm_2, as the 40B
  DType dtype = DType::kF16;  // of the matrices
  uint64_t seed = 1;
};

struct RandomTensor {
  std::string name;
  int64_t columns, rows;  // rows 0: a vector
};

inline std::vector<RandomTensor> TensorsOf(const RandomModelOptions& o) {
  const bool falcon = o.architecture == "falcon", opt = o.architecture == "opt";
  const int64_t dim = o.model_dim, kv_dim = dim / o.num_q_heads * o.num_kv_heads;
  std::vector<RandomTensor> tensors = {{"token_embd.weight", dim, o.vocab_size}};
  const auto norm = [&](const std::string& stem) {
    tensors.push_back({stem + ".weight", dim, 0});
    if (falcon || opt) tensors.push_back({stem + ".bias", dim, 0});
  };
  norm("output_norm");
  if (!o.tied && !opt) tensors.push_back({"output.weight", dim, o.vocab_size});
  if (opt) tensors.push_back({"position_embd.weight", dim, 130});
  for (int64_t l = 0; l < o.num_layers; ++l) {
    const std::string prefix = absl::StrCat("blk.", l, ".");
    const auto add = [&](const std::string& stem, int64_t columns, int64_t rows, int64_t bias = 0) {
      tensors.push_back({prefix + stem + ".weight", columns, rows});
      if (opt && bias > 0) tensors.push_back({prefix + stem + ".bias", bias, 0});
    };
    norm(prefix + "attn_norm");
    if (falcon && o.second_norm) norm(prefix + "attn_norm_2");
    if (!falcon) norm(prefix + "ffn_norm");
    if (falcon) {
      add("attn_qkv", dim, dim + 2 * kv_dim);
    } else {
      add("attn_q", dim, dim, dim);
      add("attn_k", dim, kv_dim, kv_dim);
      add("attn_v", dim, kv_dim, kv_dim);
    }
    add("attn_output", dim, dim, dim);
    if (!falcon && !opt) add("ffn_gate", dim, o.ffn_dim);
    add("ffn_up", dim, o.ffn_dim, o.ffn_dim);
    if (o.sparse) {
      add("ffn_down_t", dim, o.ffn_dim, dim);
      add("fc1", dim, o.rank);
      add("fc2", o.rank, o.ffn_dim);
    } else {
      add("ffn_down", o.ffn_dim, dim, dim);
    }
  }
  return tensors;
}

// Writes a model of Gaussian weights whose activations keep a size of about 1; biases are a few
// tenths, so that one that is left out or added twice shows.
inline absl::Status WriteRandomModel(const std::string& path, const RandomModelOptions& o) {
  ISOTHERM_ASSIGN_OR_RETURN(const auto writer, GgufWriter::Create(path, o.sparse));
  const std::string& a = o.architecture;
  const auto u32 = [&](absl::string_view key, int64_t value) {
    writer->AddUint32(absl::StrCat(a, ".", key), static_cast<uint32_t>(value));
  };
  writer->AddString("general.architecture", a);
  writer->AddString("general.name", absl::StrCat("random-", o.seed));
  u32("context_length", a == "opt" ? 130 : 128);
  u32("embedding_length", o.model_dim);
  u32("block_count", o.num_layers);
  u32("feed_forward_length", o.ffn_dim);
  u32("attention.head_count", o.num_q_heads);
  u32("attention.head_count_kv", o.num_kv_heads);
  if (o.rope_dims > 0) u32("rope.dimension_count", o.rope_dims);
  if (a == "falcon") {
    writer->AddString("falcon.tensor_data_layout", "jploski");
    writer->AddFloat("falcon.attention.layer_norm_epsilon", 1e-5f);
  } else if (a != "opt") {
    writer->AddFloat(a + ".attention.layer_norm_rms_epsilon", 1e-5f);
  }
  if (a != "opt") writer->AddFloat(a + ".rope.freq_base", 1000.0f);
  writer->AddString("tokenizer.ggml.model", "gpt2");
  writer->AddString("tokenizer.ggml.pre", "gpt-2");
  std::vector<std::string> tokens;
  for (int64_t t = 0; t < o.vocab_size; ++t) tokens.push_back(absl::StrCat("t", t));
  writer->AddStrings("tokenizer.ggml.tokens", tokens);

  const std::vector<RandomTensor> tensors = TensorsOf(o);
  for (const RandomTensor& t : tensors) {
    std::vector<int64_t> shape = {t.columns};
    if (t.rows > 0) shape.push_back(t.rows);
    ISOTHERM_RETURN_IF_ERROR(
        writer->DeclareTensor(t.name, t.rows > 0 ? o.dtype : DType::kF32, shape));
  }
  std::mt19937_64 rng(o.seed);
  std::normal_distribution<float> normal;
  for (const RandomTensor& t : tensors) {
    const DType dtype = t.rows > 0 ? o.dtype : DType::kF32;
    ISOTHERM_ASSIGN_OR_RETURN(const int64_t row_bytes, RowBytes(dtype, t.columns));
    std::vector<std::byte> bytes(static_cast<size_t>(row_bytes));
    std::vector<float> row(static_cast<size_t>(t.columns));
    const bool bias = absl::EndsWith(t.name, ".bias");
    for (int64_t r = 0; r < std::max<int64_t>(1, t.rows); ++r) {
      // A falcon's first predictor reads an embedding as it is: it has to be of size 1 as well.
      const bool unit = a == "falcon" && t.name == "token_embd.weight";
      for (float& v : row) {
        v = unit         ? normal(rng)
            : t.rows > 0 ? normal(rng) / std::sqrt(static_cast<float>(t.columns))
            : bias       ? 0.3f * normal(rng)
                         : 1.0f + 0.1f * normal(rng);
      }
      ISOTHERM_RETURN_IF_ERROR(EncodeRow(dtype, row, bytes.data()));
      ISOTHERM_RETURN_IF_ERROR(writer->Write(bytes));
    }
  }
  return writer->Finish();
}

}  // namespace isotherm::reference
