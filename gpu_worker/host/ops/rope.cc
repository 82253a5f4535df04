#include "gpu_worker/host/ops/rope.h"

#include <algorithm>
#include <cmath>

namespace isotherm::gpu {

RopeTable::RopeTable(int64_t rope_dims, double freq_base, double scale,
                     const std::vector<float>& factors) {
  for (int64_t i = 0; i < rope_dims / 2; ++i) {
    double frequency =
        std::pow(freq_base, -2.0 * static_cast<double>(i) / static_cast<double>(rope_dims)) / scale;
    if (!factors.empty()) frequency /= static_cast<double>(factors[static_cast<size_t>(i)]);
    frequency_.push_back(frequency);
  }
}

void RopeTable::Angles(int64_t position, float* cos, float* sin) const {
  for (size_t i = 0; i < frequency_.size(); ++i) {
    const double angle = static_cast<double>(position) * frequency_[i];
    cos[i] = static_cast<float>(std::cos(angle));
    sin[i] = static_cast<float>(std::sin(angle));
  }
}

void RopeInterleaved(float* head, const float* cos, const float* sin, int64_t half, int64_t first,
                     int64_t last) {
  for (int64_t i = first / 2; i < std::min(half, last / 2); ++i) {
    const float a = head[2 * i], b = head[2 * i + 1];
    head[2 * i] = a * cos[i] - b * sin[i];
    head[2 * i + 1] = a * sin[i] + b * cos[i];
  }
}

void RopeNeox(float* head, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = head[i], b = head[i + half];
    head[i] = a * cos[i] - b * sin[i];
    head[i + half] = a * sin[i] + b * cos[i];
  }
}

}  // namespace isotherm::gpu
