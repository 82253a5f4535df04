#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "common/kernels/sparse_ffn.h"
#include "tests/reference/dequantize.h"

namespace isotherm::reference {

struct SparseFfnResult {
  std::vector<double> partial;     // [num_rows, model_dim]
  std::vector<double> magnitudes;  // the same with every product's magnitude: bounds the error
  uint64_t work_hash = 0;
};

inline double Activate(Activation activation, double x) {
  switch (activation) {
    case Activation::kRelu:
      return std::max(0.0, x);
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kGelu:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
  }
  std::abort();
}

inline double InputAt(const SparseFfnParams& p, int64_t i) {
  if (p.z_f16 != nullptr) return HalfToDouble(p.z_f16[i]);
  if (p.z_bf16 != nullptr) {
    return Element(DType::kBF16, reinterpret_cast<const std::byte*>(p.z_bf16), i);
  }
  return p.z[i];
}

// The formula, pair by pair.
inline SparseFfnResult SparseFfn(const SparseFfnParams& p) {
  const BundleView& b = p.bundles;
  const int64_t words = (b.num_neurons + 63) / 64;
  SparseFfnResult out;
  out.partial.assign(p.num_rows * b.model_dim, 0.0);
  out.magnitudes.assign(p.num_rows * b.model_dim, 0.0);
  for (int64_t row = 0; row < p.num_rows; ++row) {
    for (int64_t id = p.first_neuron; id < p.last_neuron; ++id) {
      if ((p.active[row * words + id / 64] >> (id % 64) & 1) == 0) continue;
      if (p.owned != nullptr && (p.owned[id / 64] >> (id % 64) & 1) == 0) continue;
      const int64_t slot = b.slot_of == nullptr ? id : b.slot_of[id];
      if (slot < 0) continue;
      if (p.hash != nullptr) {
        out.work_hash += p.hash->row_keys[row] * NeuronMixFromSeed(p.hash->layer_seed, id);
      }
      const std::byte* const bundle = b.data + slot * b.bundle_bytes;
      double dots[2] = {0, 0}, sizes[2] = {0, 0};
      for (int i = 0; i < b.rows - 1; ++i) {
        for (int64_t k = 0; k < b.model_dim; ++k) {
          const double product =
              Element(b.dtype, bundle + i * b.row_bytes, k) * InputAt(p, row * b.model_dim + k);
          dots[i] += product;
          sizes[i] += std::abs(product);
        }
      }
      if (p.up_bias != nullptr) {
        dots[0] += static_cast<double>(p.up_bias[id]);
        sizes[0] += std::abs(static_cast<double>(p.up_bias[id]));
      }
      double scale = Activate(p.activation, dots[0]);
      double size = sizes[0];
      if (b.rows == 3) {
        scale *= p.activate_up ? Activate(p.activation, dots[1]) : dots[1];
        size *= sizes[1];
      }
      for (int64_t k = 0; k < b.model_dim; ++k) {
        const double down = Element(b.dtype, bundle + (b.rows - 1) * b.row_bytes, k);
        out.partial[row * b.model_dim + k] += scale * down;
        out.magnitudes[row * b.model_dim + k] += size * std::abs(down);
      }
    }
  }
  return out;
}

}  // namespace isotherm::reference
