#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <span>

namespace isotherm {

// Which placement epoch the next step runs under: the newest that is live and that every attached
// worker has committed; else the newest they share that was not retired; else kBuiltInEpoch, which
// every worker knows. One thread.
class EpochSelector {
 public:
  void SetGpuEpochs(std::span<const int64_t> epochs);
  // nullopt: no cpu_worker is attached, its epochs do not matter.
  void SetCpuEpochs(std::optional<std::span<const int64_t>> epochs);
  void OnLive(int64_t epoch);
  void OnRetired(int64_t epoch);
  // A worker refused a step of this epoch: not chosen again before a worker tells its epochs anew.
  void OnRefused(int64_t epoch);

  int64_t Select() const;

 private:
  std::set<int64_t> gpu_;
  std::optional<std::set<int64_t>> cpu_;
  int64_t live_ = 0;
  std::set<int64_t> retired_;
  std::set<int64_t> refused_;
};

}  // namespace isotherm
