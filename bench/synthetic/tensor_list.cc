#include "bench/synthetic/tensor_list.h"

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "models/bundle_layout.h"

namespace isotherm::bench {
namespace {

class Lister {
 public:
  explicit Lister(const SyntheticOptions& options) : o_(options) {}

  void Vector(std::string name, TensorKind kind) {
    Add({.name = std::move(name), .kind = kind, .columns = o_.model_dim, .rows = 1});
  }
  void Matrix(std::string name, TensorKind kind, int64_t columns, int64_t rows, int64_t layer = 0) {
    Add({.name = std::move(name),
         .kind = kind,
         .layer = layer,
         .columns = columns,
         .rows = rows,
         .dtype = o_.dtype});
  }
  // LayerNorm has a bias, RMSNorm has none.
  void Norm(const std::string& stem) {
    Vector(absl::StrCat(stem, ".weight"), TensorKind::kOnes);
    if (o_.family == SyntheticFamily::kFalcon) {
      Vector(absl::StrCat(stem, ".bias"), TensorKind::kZeros);
    }
  }
  std::vector<SyntheticTensor> Take() { return std::move(tensors_); }

 private:
  void Add(SyntheticTensor tensor) {
    const absl::StatusOr<int64_t> bytes = RowBytes(tensor.dtype, tensor.columns);
    ISOTHERM_CHECK(bytes.ok());  // the options were validated
    tensor.row_bytes = *bytes;
    tensors_.push_back(std::move(tensor));
  }

  const SyntheticOptions& o_;
  std::vector<SyntheticTensor> tensors_;
};

}  // namespace

std::vector<SyntheticTensor> ListTensors(const SyntheticOptions& o) {
  const bool falcon = o.family == SyntheticFamily::kFalcon;
  const int64_t dim = o.model_dim;
  const int64_t kv_dim = dim / o.num_q_heads * o.num_kv_heads;
  Lister list(o);
  list.Matrix("token_embd.weight", TensorKind::kEmbedding, dim, o.vocab_size);
  list.Norm("output_norm");
  list.Matrix("output.weight", TensorKind::kHead, dim, o.vocab_size);
  for (int64_t layer = 0; layer < o.num_layers; ++layer) {
    const auto name = [layer](const char* stem) { return absl::StrCat("blk.", layer, ".", stem); };
    const auto matrix = [&](const char* stem, TensorKind kind, int64_t columns, int64_t rows) {
      list.Matrix(absl::StrCat(name(stem), ".weight"), kind, columns, rows, layer);
    };
    list.Norm(name("attn_norm"));
    list.Norm(name(falcon ? "attn_norm_2" : "ffn_norm"));
    if (falcon) {
      matrix("attn_qkv", TensorKind::kQkv, dim, dim + 2 * kv_dim);
    } else {
      matrix("attn_q", TensorKind::kQuery, dim, dim);
      matrix("attn_k", TensorKind::kKey, dim, kv_dim);
      matrix("attn_v", TensorKind::kValue, dim, kv_dim);
    }
    matrix("attn_output", TensorKind::kWrite, dim, dim);
    if (o.arena) {
      matrix("ffn_bundle", TensorKind::kBundle, BundleColumns(o.dtype, falcon ? 2 : 3, dim),
             o.ffn_dim);
    } else if (falcon) {
      matrix("ffn_up", TensorKind::kGate, dim, o.ffn_dim);
      matrix("ffn_down_t", TensorKind::kDown, dim, o.ffn_dim);
    } else {
      matrix("ffn_gate", TensorKind::kGate, dim, o.ffn_dim);
      matrix("ffn_up", TensorKind::kUp, dim, o.ffn_dim);
      matrix("ffn_down_t", TensorKind::kDown, dim, o.ffn_dim);
    }
    matrix("fc1", TensorKind::kFc1, dim, o.predictor_rows);
    matrix("fc2", TensorKind::kFc2, o.predictor_rows, o.ffn_dim);
  }
  return list.Take();
}

}  // namespace isotherm::bench
