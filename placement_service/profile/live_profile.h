#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/telemetry/telemetry_report.h"

namespace isotherm {

struct LiveProfileOptions {
  // Tokens after which a count is worth half. Long against the noise of a sample, short against a
  // day; a sudden change of the traffic is answered by Forget(), not by a short memory.
  double half_life_tokens = 20'000;
};

// How often each neuron is named by the predictor and fires, in shares of tokens, old tokens
// counting less. What is known beforehand counts as tokens seen long ago. Not thread-safe.
class LiveProfile {
 public:
  struct Layer {
    double tokens = 0;                    // effective sample size, of `predicted`
    double fired_tokens = 0;              // of `fired`; exact rows count for it too
    std::vector<float> predicted, fired;  // [num_neurons], 0 to 1
  };

  // The name of a profile that began with nothing.
  static constexpr char kNothingKnown[] = "even";

  LiveProfile(int64_t num_layers, int64_t num_neurons, const LiveProfileOptions& options);

  int64_t num_layers() const { return static_cast<int64_t>(layers_.size()); }
  int64_t num_neurons() const { return num_neurons_; }
  const std::string& name() const { return name_; }

  // Starts over. An empty `predicted` means that nothing is known; an empty `fired` that it is the
  // same. `tokens`: what the shares are worth.
  void Start(std::string name, std::span<const std::vector<float>> predicted,
             std::span<const std::vector<float>> fired, double tokens);
  // A layer as Get() gave it.
  void Restore(size_t layer, const Layer& values);
  void SetName(std::string name) { name_ = std::move(name); }

  // A report of this shape. Tokens and what was predicted are the gpu_worker's to tell; firings are
  // added up from whoever computed the neuron.
  void Add(const TelemetryReport& report, bool from_gpu_worker);
  // From now on tokens lose their worth `times` as slowly as the options say.
  void SetMemory(double times) { memory_ = times; }
  // What was learnt counts as `keep` times as many tokens from now on.
  void Forget(double keep);

  // The least effective sample size of a layer; 0: nothing is known.
  double tokens() const;
  Layer Get(size_t layer) const;

 private:
  // Counts are kept times `scale`, which grows as old counts lose worth: so a report touches the
  // neurons it names, not all.
  struct Counts {
    double scale = 1, tokens = 0, fired_tokens = 0;
    std::vector<float> predicted, fired;
  };
  static void Rescale(Counts& counts, double factor);

  const int64_t num_neurons_;
  const LiveProfileOptions options_;
  double memory_ = 1;
  std::string name_ = kNothingKnown;
  std::vector<Counts> layers_;
};

}  // namespace isotherm
