#pragma once

#include <cstdint>

namespace isotherm::gpu {

// out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i], i < n. Source: RMSNorm, Zhang and Sennrich
// 2019, arXiv:1910.07467. The sum of squares runs in fixed lanes: the bits depend on the row
// alone. out may be x. Any thread.
void RmsNorm(const float* x, const float* weight, int64_t n, float eps, float* out);

}  // namespace isotherm::gpu
