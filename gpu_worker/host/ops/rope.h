#pragma once

#include <cstdint>
#include <vector>

namespace isotherm::gpu {

// Angles of the rotary embedding. Source: RoFormer, Su et al. 2021, arXiv:2104.09864.
// angle_i = position * freq_base^(-2i / rope_dims) / scale / factors[i], i < rope_dims / 2.
class RopeTable {
 public:
  // factors: [rope_dims / 2], or empty for all 1.
  RopeTable(int64_t rope_dims, double freq_base, double scale, const std::vector<float>& factors);

  int64_t half() const { return static_cast<int64_t>(frequency_.size()); }
  // cos and sin of the position's angles, [half] each, rounded once from double.
  void Angles(int64_t position, float* cos, float* sin) const;

 private:
  std::vector<double> frequency_;
};

// Rotates elements [first, last) of one head in place; pairs (2i, 2i + 1), both bounds even.
// Elements from 2 * half on stay. cos, sin: [half].
void RopeInterleaved(float* head, const float* cos, const float* sin, int64_t half, int64_t first,
                     int64_t last);

// The whole head in place; pairs (i, i + half), as GPT-NeoX lays them out.
void RopeNeox(float* head, const float* cos, const float* sin, int64_t half);

}  // namespace isotherm::gpu
