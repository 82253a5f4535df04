#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "placement_service/policy/plan_moves.h"
#include "placement_service/policy/reversal_watch.h"
#include "placement_service/telemetry/traffic_model.h"

namespace isotherm {

struct AutoMoverOptions {
  MovePolicy policy;
  // Looked at again after so long and so many tokens.
  std::chrono::milliseconds min_interval{1'000};
  double min_tokens = 64;
  // Without a report for so long nothing moves.
  std::chrono::milliseconds stale_after{10'000};
  // What may be copied in, as a share of the budget a second; unused, it is saved up for some
  // seconds. 0: nothing moves, whatever else is said here.
  double moves_per_second = 0.01;
  double saved_seconds = 5;
  // The same after a drift alarm, for so many tokens.
  double drift_moves_per_second = 0.25;
  double drift_tokens = 2'000;
  // While the traffic is being learnt from nothing there is no cap: any hot set is better than one
  // that nobody chose. The set is looked at each time so many times as many tokens were seen.
  double learn_growth = 1.5;
};

// Decides when the live plan follows the traffic: often enough to matter, seldom enough not to
// thrash. Used by the publisher's thread.
class AutoMover {
 public:
  // Both outlive it.
  AutoMover(const AutoMoverOptions& options, TrafficModel& traffic, const Clock& clock);

  struct Situation {
    std::vector<LayerGeometry> layers;
    int64_t budget_bytes = 0;
    // What the gpu_worker can take in beside the live plan. A move may exceed it, and then takes
    // several epochs, while the traffic is being learnt and after an alarm.
    int64_t spare_bytes = 0;
    const PlacementPlan* live = nullptr;  // with bitmaps
    bool use_times = false;
  };
  // The move to make now; nullopt: none, status() says why.
  std::optional<MoveDecision> Consider(const Situation& situation);
  // A move that Consider() proposed is under way, from `before`.
  void Moved(const MoveDecision& decision, const std::vector<LayerPlacement>& before);

  // In words, for operators.
  const std::string& status() const { return status_; }
  // What they should know of at once, since the last call.
  std::vector<std::string> TakeAlarms();
  // An alarm's cap is in force.
  bool lifted() const { return lifted_until_ > last_tokens_; }

 private:
  void StartOver();
  void NoteDrift(double total_tokens);
  void NoteStale(bool stale);
  void Accrue(const Situation& situation);
  int64_t MostIn(const Situation& situation) const;

  const AutoMoverOptions options_;
  TrafficModel& traffic_;
  const Clock& clock_;
  SolveHints hints_;
  ReversalWatch reversals_;
  std::string status_ = "nothing was seen of the traffic yet";
  std::vector<std::string> alarms_;
  bool stale_ = false;
  bool learning_ = false;   // when it was looked at
  double last_tokens_ = 0;  // likewise
  double lifted_until_ = -1;
  std::optional<Clock::TimePoint> last_look_, last_accrual_;
  double allowance_bytes_ = 0;
};

}  // namespace isotherm
