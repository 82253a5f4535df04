#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "common/base/clock.h"
#include "common/step/placement_plan.h"
#include "common/telemetry/telemetry_report.h"
#include "placement_service/profile/live_profile.h"
#include "placement_service/solver/solve_placement.h"
#include "placement_service/telemetry/cost_estimator.h"
#include "placement_service/telemetry/drift_detector.h"

namespace isotherm {

struct TrafficOptions {
  LiveProfileOptions profile;
  DriftOptions drift;
  double prior_tokens = 500;  // what a shipped profile is worth
  // Without one the traffic is being learnt until so many tokens were seen.
  double learn_tokens = 4'000;
  // What was learnt is worth so many tokens at most once the traffic turned out to be another.
  double tokens_kept_at_drift = 100;
  double max_reports_per_second = 5;  // of an instance; a burst of a few seconds more is taken
};

// What the model's layers look like, as the gpu_worker described them.
struct ModelShape {
  std::string digest;
  int64_t num_layers = 0, num_neurons = 0, bundle_bytes = 0;
  int32_t bundle_rows = 3;  // the first is read for each neuron named, the others where it fires
};

// All that a plan is made from, at one moment.
struct TrafficEstimate {
  std::string profile;  // its name, with "+ live" once traffic was seen
  double tokens = 0;    // effective sample size; 0: nothing is known, the arrays are empty
  // The traffic is being learnt from nothing until there are so many tokens; 0: it is not.
  double learning_until = 0;
  // [num_layers][num_neurons]: share of tokens for which the neuron is named; bytes a decode step
  // reads of it; the standard error of the latter.
  std::vector<std::vector<float>> frequency, reads, error;
  bool timed = false;        // `costs` were measured
  SolveBin costs;            // without budget
  double rows_per_step = 1;  // of decode
};

// What the live plan was seen to do.
struct Measurement {
  int64_t epoch = 0;
  double tokens = 0;
  double hit_share = 0;
  double step_ns = 0;  // of a decode step's layers; 0: not timed
  struct Layer {
    double hit_share = 0, gpu_us = 0, cpu_us = 0, wait_us = 0, merge_us = 0;
  };
  std::vector<Layer> layers;
};

// The profile as it is stored.
struct StoredProfile {
  std::string model_digest, name;
  double total_tokens = 0;
  std::vector<LiveProfile::Layer> layers;
  std::map<std::string, int64_t> last_sequence;  // by instance
};

// Takes the workers' reports and knows what they add up to: profile, costs, the live plan's hit
// share, drift. Reports are distrusted: one that is doubled, late, from nobody we know, too
// frequent or impossible is dropped and counted. Thread-safe; no call blocks on anything but
// another's arithmetic.
class TrafficModel {
 public:
  TrafficModel(const TrafficOptions& options, const Clock& clock);

  // What the workers serve. Another digest or shape starts over from the prior given by SetPrior()
  // or, if it was stored for this model, from what was learnt before.
  void SetModel(const ModelShape& shape, std::optional<StoredProfile> stored);
  // Names the profile that an unknown model starts from; an empty one knows nothing. `tokens` 0:
  // options.prior_tokens. Starts over at once if the model is known already.
  void SetPrior(std::string name, std::vector<std::vector<float>> predicted,
                std::vector<std::vector<float>> fired, double tokens);
  // Whose reports count. Empty: nobody's.
  void SetWorkers(const std::string& gpu_instance, const std::string& cpu_instance);
  // The plan that steps run under from now on, with bitmaps; of the model's shape.
  void SetLive(const PlacementPlan& plan);

  // AlreadyExists: doubled or late. NotFound: of no worker of ours. ResourceExhausted: too many.
  // InvalidArgument: impossible. Each is counted as dropped.
  absl::Status Accept(const TelemetryReport& report);

  // Tokens keep their worth so many times as long as the options say.
  void SetMemory(double times);
  double half_life_tokens() const;

  TrafficEstimate Estimate() const;
  Measurement Measured() const;
  StoredProfile Snapshot() const;

  struct Freshness {
    double total_tokens = 0;                           // ever counted
    bool learning = false;                             // as TrafficEstimate.learning_until
    std::optional<std::chrono::nanoseconds> age;       // of the gpu_worker's last report
    std::optional<std::chrono::nanoseconds> work_age;  // of the last one with a step in it
  };
  Freshness freshness() const;
  // Of drift, since the last call.
  struct Drift {
    bool alarm = false;
    double usual = 0, recent = 0;  // share of activations that were hot
  };
  Drift TakeDrift();

  struct Counts {
    int64_t accepted = 0, dropped = 0, doubled = 0, lost = 0;
  };
  Counts counts() const;

 private:
  struct Instance {
    int64_t last_sequence = 0;
    double allowance = 0;
    Clock::TimePoint seen;
  };
  struct LayerSums {
    double hot = 0, all = 0;
    double steps = 0, gpu_ns = 0, cpu_ns = 0, wait_ns = 0, merge_ns = 0;
  };
  absl::Status Check(const TelemetryReport& report, bool from_gpu) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Admit(const TelemetryReport& report) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Measure(const TelemetryReport& report) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void StartOver() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool Learning() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void WatchLive() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const TrafficOptions options_;
  const Clock& clock_;
  mutable absl::Mutex mu_;
  ModelShape shape_ ABSL_GUARDED_BY(mu_);
  std::vector<std::vector<float>> prior_predicted_ ABSL_GUARDED_BY(mu_);
  std::vector<std::vector<float>> prior_fired_ ABSL_GUARDED_BY(mu_);
  double prior_tokens_ ABSL_GUARDED_BY(mu_) = 0;
  std::string prior_name_ ABSL_GUARDED_BY(mu_) = "even";
  std::unique_ptr<LiveProfile> profile_ ABSL_GUARDED_BY(mu_);
  double memory_ ABSL_GUARDED_BY(mu_) = 1;
  CostEstimator costs_ ABSL_GUARDED_BY(mu_);
  DriftDetector drift_ ABSL_GUARDED_BY(mu_);
  bool drift_alarm_ ABSL_GUARDED_BY(mu_) = false;
  double drift_usual_ ABSL_GUARDED_BY(mu_) = 0;
  std::string gpu_instance_ ABSL_GUARDED_BY(mu_), cpu_instance_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, Instance> instances_ ABSL_GUARDED_BY(mu_);
  PlacementPlan live_ ABSL_GUARDED_BY(mu_);
  std::vector<LayerSums> live_sums_ ABSL_GUARDED_BY(mu_);
  double live_tokens_ ABSL_GUARDED_BY(mu_) = 0;
  double total_tokens_ ABSL_GUARDED_BY(mu_) = 0;
  double learnt_tokens_ ABSL_GUARDED_BY(mu_) = 0;    // since the prior
  bool from_nothing_ ABSL_GUARDED_BY(mu_) = true;    // there was no prior
  bool watches_drift_ ABSL_GUARDED_BY(mu_) = false;  // of the live plan
  std::optional<Clock::TimePoint> seen_at_ ABSL_GUARDED_BY(mu_), worked_at_ ABSL_GUARDED_BY(mu_);
  Counts counts_ ABSL_GUARDED_BY(mu_);
};

}  // namespace isotherm
