#pragma once

#include <cstdint>
#include <optional>

#include "placement_service/telemetry/traffic_model.h"

namespace isotherm {

// Compares what a plan was seen to do with the plan before it. Used by the publisher's thread.
class GainRecorder {
 public:
  explicit GainRecorder(const TrafficModel& traffic) : traffic_(traffic) {}

  // The live plan is about to be replaced, or is the first one of this process.
  void BeforeFlip();

  struct Result {
    double hit_share = 0;
    // Share of the time of a decode step's layers; nullopt: one of both was not timed for long
    // enough.
    std::optional<double> gain;
  };
  // Of the plan that is live now, once, as soon as it ran for long enough.
  std::optional<Result> Take(int64_t live_epoch);

 private:
  const TrafficModel& traffic_;
  Measurement before_;
  int64_t taken_epoch_ = -1;
};

}  // namespace isotherm
