#pragma once

#include <cstdint>

#include "common/tensor/dtype.h"

namespace isotherm {

// How a neuron lies in memory: [gate row | up row | down row], or without the gate row (`rows` 2),
// padded to a multiple of 64 bytes.
// Layer-major, then neuron-major: a neuron is one contiguous read.
struct BundleLayout {
  DType dtype = DType::kF16;
  int rows = 3;
  int64_t model_dim = 0;
  int64_t row_bytes = 0;
  int64_t bundle_bytes = 0;
  int64_t num_neurons = 0;  // of a layer
  int64_t num_layers = 0;

  int64_t layer_bytes() const { return num_neurons * bundle_bytes; }
  // Equal on processes that may share an arena.
  uint64_t Hash() const;
};

// Columns of a layer's tensor in a bundle-ordered file: the rows of a neuron one after the other,
// then zero blocks until a row is a multiple of 64 bytes. `model_dim` is a multiple of the type's
// block.
int64_t BundleColumns(DType dtype, int rows, int64_t model_dim);

}  // namespace isotherm
