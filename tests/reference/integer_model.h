#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/tensor/dtype.h"

namespace isotherm::reference {

// A small sparse llama model in which every sum is a sum of integers below 2^24, so that no
// summation order, placement, batch, chunking or weight type can change a bit of the residual
// stream:
//  - a few "anchor" coordinates of the residual are 2^15 in every token and never written; they
//  dominate
//    the RMS, so RMSNorm is the identity up to 2^-12 and rounding to 16 bits gives integers back;
//  - all keys are equal and a query is that key turned back by one of two distances, chosen by a
//  bit of
//    the token: softmax is exactly one-hot and attention copies one value row;
//  - neurons come in pairs with opposite down rows: a step pair adds 0 or +-1, a twin pair cancels
//  unless
//    one of the two is lost, doubled or computed wrongly;
//  - predictor scores are integers without false negatives; logits never tie.
// Every bound is worst case and checked while generating (ISOTHERM_CHECK).
struct IntegerModelOptions {
  int64_t model_dim = 64;
  int64_t ffn_dim = 256;
  int64_t num_layers = 4;
  int64_t num_q_heads = 4;
  int64_t num_kv_heads = 2;
  int64_t vocab_size = 512;
  int64_t context_length = 512;
  uint64_t seed = 1;
  bool tied = false;
};

class IntegerModel {
 public:
  explicit IntegerModel(const IntegerModelOptions& options);

  // PWRI GGUF with every matrix in `dtype` (F16, BF16, Q8_0 or Q4_0: the same function in each) and
  // a tokenizer of 256 bytes and <wN> words.
  absl::Status Write(const std::string& path, DType dtype) const;

  // Greedy continuation of `prompt`, computed with integers. If `residual` is given it gets the
  // residual after each half layer of every position: [positions][2 * num_layers][model_dim].
  std::vector<int32_t> Golden(
      const std::vector<int32_t>& prompt, int64_t steps,
      std::vector<std::vector<std::vector<int64_t>>>* residual = nullptr) const;

  // Seeded random prompts of 1 to 39 ids.
  std::vector<std::vector<int32_t>> Prompts(uint64_t seed, int count) const;

  const IntegerModelOptions& options() const { return options_; }

 private:
  // Row-major [rows, columns]; values are integers times a power of two, exact in double.
  struct Matrix {
    int64_t rows = 0, columns = 0;
    std::vector<double> values;
    Matrix() = default;
    Matrix(int64_t r, int64_t c) : rows(r), columns(c), values(static_cast<size_t>(r * c)) {}
    double& at(int64_t r, int64_t c) { return values[static_cast<size_t>(r * columns + c)]; }
    double at(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * columns + c)]; }
  };
  struct HeadTable {
    std::vector<double> mid, diff;          // query in units: mid + bit * diff, [head_dim]
    std::vector<std::vector<int32_t>> win;  // [bit 0 or 1][position]: how far back it looks
    int64_t bit = 0;                        // residual coordinate of the bit
  };
  struct Layer {
    Matrix q, k, v, o, gate, up, down, fc1, fc2;  // down: [ffn_dim, model_dim]
    std::vector<HeadTable> heads;
  };

  using Rng = std::mt19937_64;
  std::vector<int64_t> Permutation(std::vector<int64_t> items);
  int64_t Uniform(int64_t low, int64_t high);  // inclusive
  int64_t Pick(std::initializer_list<int64_t> items);
  bool MakeHeadTable(HeadTable* table);
  void BuildAttention(Layer& layer);
  void BuildFfn(Layer& layer, std::vector<std::vector<int64_t>>& calibration);
  std::vector<int64_t> AttendInteger(const Layer& layer,
                                     const std::vector<std::vector<int64_t>>& values,
                                     const std::vector<int64_t>& x, int64_t position) const;
  std::vector<int64_t> ValueInteger(const Layer& layer, const std::vector<int64_t>& x) const;
  std::vector<int64_t> FfnInteger(const Layer& layer, const std::vector<int64_t>& x) const;

  IntegerModelOptions options_;
  Rng rng_;
  int64_t head_dim_ = 0, num_bits_ = 0, first_free_ = 0, num_anchors_ = 0, rank_ = 0;
  double key_unit_ = 0, query_unit_ = 0;
  std::vector<int64_t> bit_coordinates_, ffn_writes_, attention_writes_;
  std::vector<double> bound_;  // worst case of |residual| per coordinate
  Matrix embedding_, head_;
  std::vector<Layer> layers_;
  std::vector<float> attn_norm_, ffn_norm_, output_norm_;
  std::vector<double> head_scale_;
};

}  // namespace isotherm::reference
