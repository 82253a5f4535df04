#include "gateway/routing/epoch_selector.h"

#include "common/step/step.h"

namespace isotherm {
namespace {
// Retired epochs are remembered only as long as a worker may still list them.
constexpr size_t kMaxRetired = 64;
}  // namespace

void EpochSelector::SetGpuEpochs(std::span<const int64_t> epochs) {
  gpu_ = std::set<int64_t>(epochs.begin(), epochs.end());
  refused_.clear();
}

void EpochSelector::SetCpuEpochs(std::optional<std::span<const int64_t>> epochs) {
  cpu_.reset();
  refused_.clear();
  if (epochs.has_value()) cpu_.emplace(epochs->begin(), epochs->end());
}

void EpochSelector::OnLive(int64_t epoch) {
  live_ = epoch;
  retired_.erase(epoch);
}

void EpochSelector::OnRetired(int64_t epoch) {
  if (epoch == kBuiltInEpoch) return;
  retired_.insert(epoch);
  if (retired_.size() > kMaxRetired) retired_.erase(retired_.begin());
}

void EpochSelector::OnRefused(int64_t epoch) {
  if (epoch != kBuiltInEpoch) refused_.insert(epoch);
}

int64_t EpochSelector::Select() const {
  const auto shared = [this](int64_t epoch) {
    return gpu_.contains(epoch) && !refused_.contains(epoch) &&
           (!cpu_.has_value() || cpu_->contains(epoch));
  };
  if (shared(live_)) return live_;
  for (auto it = gpu_.rbegin(); it != gpu_.rend(); ++it) {
    if (shared(*it) && !retired_.contains(*it)) return *it;
  }
  return kBuiltInEpoch;
}

}  // namespace isotherm
