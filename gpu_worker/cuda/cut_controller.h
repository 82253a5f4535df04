#pragma once

#include <algorithm>
#include <cstdint>

namespace isotherm::gpu {

// Where each layer's cold ids are cut: ids below go to the cpu side, the rest is read by the device
// over PCIe. The two rates are learnt from what they took; the cut is put where both would end
// together. Not thread-safe.
class CutController {
 public:
  CutController() = default;
  // fixed_share: of the ids read by the device, 0 to 1; below 0: adaptive.
  CutController(int64_t num_neurons, double fixed_share)
      : num_neurons_(num_neurons),
        fixed_(fixed_share >= 0),
        share_(fixed_ ? std::min(fixed_share, 1.0) : kFirstShare) {}

  int32_t cut() const {
    return static_cast<int32_t>(static_cast<double>(num_neurons_) * (1.0 - share_));
  }
  double share() const { return share_; }

  // What a step's layers took each side, summed over those that both worked on; any unit.
  void Observe(double cpu, double streamed) {
    if (fixed_ || cpu <= 0 || streamed <= 0) return;
    // Each side's time is proportional to its share: t = share / rate.
    const double cpu_rate = (1.0 - share_) / cpu;
    const double streamed_rate = share_ / streamed;
    const double balanced = streamed_rate / (cpu_rate + streamed_rate);
    share_ = std::clamp(share_ + kGain * (balanced - share_), kLeast, kMost);
  }

 private:
  static constexpr double kFirstShare = 0.3, kGain = 0.1, kLeast = 0.02, kMost = 0.9;
  int64_t num_neurons_ = 0;
  bool fixed_ = false;
  double share_ = 0;
};

}  // namespace isotherm::gpu
