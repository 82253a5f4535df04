#pragma once

#include <optional>
#include <string>

#include "common/base/clock.h"
#include "placement_service/plan/plan_store.h"
#include "placement_service/telemetry/traffic_model.h"

namespace isotherm {

// Keeps what was learnt of the traffic in the store, so that a restart goes on where it was. Used
// by the publisher's thread.
class ProfileKeeper {
 public:
  // All outlive it.
  ProfileKeeper(PlanStore& store, TrafficModel& traffic, const Clock& clock);

  // What the store has; a damaged one is reported and left where it is until the next save.
  std::optional<StoredProfile> Load();
  // Saves now and then, if something was learnt since.
  void SaveIfDue();
  void Save();

 private:
  PlanStore& store_;
  TrafficModel& traffic_;
  const Clock& clock_;
  double saved_tokens_ = 0;
  Clock::TimePoint saved_at_;
  bool failing_ = false;
};

}  // namespace isotherm
