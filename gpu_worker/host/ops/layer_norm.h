#pragma once

#include <cstdint>

namespace isotherm::gpu {

// out[i] = (x[i] - mean) / sqrt(variance + eps) * weight[i] + bias[i], i < n, with the population
// variance. Source: Layer Normalization, Ba et al. 2016, arXiv:1607.06450. The sums run in fixed
// lanes: the bits depend on the row alone. out may be x. Any thread.
void LayerNorm(const float* x, const float* weight, const float* bias, int64_t n, float eps,
               float* out);

}  // namespace isotherm::gpu
