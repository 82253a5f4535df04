#pragma once

#include <algorithm>
#include <cstdint>

namespace isotherm::gpu {

// Where each layer's cold ids are cut: ids below go to the cpu side, the rest is read by the device
// over PCIe. The two rates are learnt from what they took; the cut is put where both would end
// together. Of one layer, or of all that go alike. Not thread-safe.
class CutController {
 public:
  // fixed_share: of the ids read by the device, 0 to 1; below 0: adaptive, from first_share on, by
  // `gain` of the way to what a step says and at most by most_change.
  CutController(int64_t num_neurons, double fixed_share, double first_share, double gain,
                double most_change)
      : num_neurons_(num_neurons),
        fixed_(fixed_share >= 0),
        gain_(gain),
        most_change_(most_change),
        share_(fixed_ ? std::min(fixed_share, 1.0) : first_share) {}

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
    const double change = std::clamp(gain_ * (balanced - share_), -most_change_, most_change_);
    share_ = std::clamp(share_ + change, kLeast, kMost);
  }

 private:
  static constexpr double kLeast = 0.02, kMost = 0.95;
  int64_t num_neurons_ = 0;
  bool fixed_ = false;
  double gain_ = 0, most_change_ = 0;
  double share_ = 0;
};

}  // namespace isotherm::gpu
