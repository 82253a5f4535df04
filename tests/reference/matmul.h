#pragma once

#include <cmath>
#include <vector>

#include "common/kernels/matmul.h"
#include "tests/reference/dequantize.h"

namespace isotherm::reference {

// sums[r * w.rows + n] = w[n] . x[r], and the sum of the products' magnitudes, which bounds the
// rounding error of any order of summation.
struct Products {
  std::vector<double> sums;
  std::vector<double> magnitudes;
};

inline Products MatMul(const MatMulParams& p) {
  Products out;
  for (int64_t r = 0; r < p.num_rows; ++r) {
    for (int64_t n = 0; n < p.w.rows; ++n) {
      double sum = 0, magnitude = 0;
      for (int64_t k = 0; k < p.w.columns; ++k) {
        const double product = Element(p.w, n, k) * p.x[r * p.x_stride + k];
        sum += product;
        magnitude += std::abs(product);
      }
      out.sums.push_back(sum);
      out.magnitudes.push_back(magnitude);
    }
  }
  return out;
}

}  // namespace isotherm::reference
