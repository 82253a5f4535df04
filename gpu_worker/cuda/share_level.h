#pragma once

#include <algorithm>
#include <cmath>

namespace isotherm::gpu {

// Which cold neurons of a step of many rows go to the cpu side: those that the fewest rows need.
// Its time grows with rows and neurons, that of reading over PCIe with neurons alone, so each side
// gets what it is good at. The level is where both end together. Not thread-safe.
class ShareLevel {
 public:
  explicit ShareLevel(double first) : share_(first) {}

  // Neurons that fewer rows need go to the cpu side, and of those that need as many as the whole
  // part says, the fraction.
  double level(int rows) const { return 1 + std::max(kLeastLevel, share_ * rows); }
  double share() const { return share_; }

  // What a layer took each side; any unit.
  void Observe(double cpu, double streamed) {
    if (cpu <= 0 || streamed <= 0) return;
    const double change = std::pow(streamed / cpu, kGain);
    share_ = std::clamp(share_ * std::clamp(change, 1 / kMostChange, kMostChange), kLeast, 1.0);
  }

 private:
  // A layer's answer comes two layers late, so that a larger gain would swing.
  static constexpr double kGain = 0.3, kMostChange = 1.25, kLeast = 1e-3, kLeastLevel = 0.05;
  double share_;
};

}  // namespace isotherm::gpu
