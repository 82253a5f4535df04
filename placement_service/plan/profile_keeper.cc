#include "placement_service/plan/profile_keeper.h"
#include "common/process/log.h"

#include <chrono>
#include <utility>

namespace isotherm {
namespace {

// What a crash may forget. A save writes eight bytes a neuron.
constexpr std::chrono::seconds kSaveInterval{30};

}  // namespace

ProfileKeeper::ProfileKeeper(PlanStore& store, TrafficModel& traffic, const Clock& clock)
    : store_(store), traffic_(traffic), clock_(clock), saved_at_(clock.Now()) {}

std::optional<StoredProfile> ProfileKeeper::Load() {
  absl::StatusOr<std::optional<StoredProfile>> stored = store_.GetProfile();
  if (!stored.ok()) {
    LogWarning("{}; learning starts over", std::string(stored.status().message()));
    return std::nullopt;
  }
  if (stored->has_value()) saved_tokens_ = (*stored)->total_tokens;
  return *std::move(stored);
}

void ProfileKeeper::SaveIfDue() {
  if (clock_.Now() - saved_at_ >= kSaveInterval) Save();
}

void ProfileKeeper::Save() {
  saved_at_ = clock_.Now();
  const double tokens = traffic_.freshness().total_tokens;
  if (tokens == saved_tokens_) return;
  const StoredProfile profile = traffic_.Snapshot();
  if (profile.layers.empty()) return;
  const absl::Status status = store_.PutProfile(profile);
  if (status.ok()) {
    saved_tokens_ = tokens;
  } else if (!failing_) {
    LogWarning("what was learnt is not saved: {}", std::string(status.message()));
  }
  failing_ = !status.ok();
}

}  // namespace isotherm
