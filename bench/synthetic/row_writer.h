#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "bench/synthetic/row_kernels.h"
#include "bench/synthetic/synthetic_options.h"
#include "bench/synthetic/tensor_list.h"
#include "bench/synthetic/weight_recipe.h"
#include "models/matrix.h"

namespace isotherm::bench {

// What all threads of one generation share. `options` outlive it.
struct SharedDesign {
  explicit SharedDesign(const SyntheticOptions& options);

  const SyntheticOptions& options;
  WeightRecipe recipe;
  std::vector<double> drive_by_rank;  // Probit of the designed activity
};

// Makes rows of a synthetic model's tensors (weight_recipe.h says which). A row depends on the
// options alone, not on what was made before. One thread; keeps the basis of the last layer.
class RowWriter {
 public:
  explicit RowWriter(const SharedDesign& design);

  // tensor.row_bytes bytes.
  void Write(const SyntheticTensor& tensor, int64_t row, std::byte* out);

 private:
  struct Mix {
    int64_t basis[3];
    int sign[3];
  };
  void EnterLayer(int64_t layer);
  Mix MixOf(int64_t neuron) const;
  int64_t MixGate(int64_t neuron, int8_t* out) const;
  // The rounded weight on the constant of the class, for a gate row of that squared norm.
  float Threshold(int64_t neuron, int64_t token_class, int64_t squared_norm) const;

  void DrawRow(TensorKind kind, int64_t layer, int64_t row, int64_t columns);
  void ClearReserved();
  void Encode(int64_t columns, int exponent, std::byte* out) const;
  void WriteNeuronPart(TensorKind part, int64_t layer, int64_t neuron, std::byte* out);
  void WriteGate(int64_t layer, int64_t neuron, std::byte* out);
  void WriteFc1(int64_t row, std::byte* out);
  void WriteFc2(int64_t neuron, int64_t columns, std::byte* out);

  // A constant: `levels_` get 1, and -1 beside it when the constant is a pair; after encoding the
  // value replaces them.
  void MarkConstant(int64_t column, bool pair);
  void SetConstant(int64_t column, bool pair, float value, std::byte* row) const;
  float Rounded(double value) const;
  bool pair() const { return design_.recipe.num_constants == 2; }

  const SharedDesign& design_;
  const int64_t classes_;
  AlignedBytes level_bytes_;
  int8_t* levels_;
  int64_t layer_ = -1;
  int64_t basis_stride_;
  AlignedBytes basis_bytes_;
  int8_t* basis_;                            // [k, basis_stride_], of layer_
  std::vector<std::vector<int32_t>> ranks_;  // [class][neuron], of layer_
};

}  // namespace isotherm::bench
