#pragma once

#include <cstdint>
#include <optional>

namespace isotherm {

struct DriftOptions {
  // Halves of the two means that are compared, in tokens.
  double fast_tokens = 60, slow_tokens = 1'500;
  // An alarm wants the recent share of hot activations below the usual one by so much, and by so
  // many times what it scatters.
  double min_drop = 0.02;
  double sigmas = 4;
  // No second alarm within so many tokens; doubled up to the most each time one comes soon after
  // the end of the last pause, halved for each pause without: traffic that swings to and fro is
  // then learnt as a mixture instead of chased.
  double pause_tokens = 3'000, max_pause_tokens = 200'000;
};

// Watches by how much the share of activations that are hot is off what the live plan was expected
// to have. A fall of that difference means that the traffic is not what the plan was made for; that
// the plan changes meanwhile does not matter. Not thread-safe.
class DriftDetector {
 public:
  explicit DriftDetector(const DriftOptions& options);

  // The plan that is live from now on is expected to have `share`; nullopt: nobody knows, and
  // nothing is watched until somebody does.
  void Expect(std::optional<double> share);
  // What `tokens` tokens under that plan had. True: an alarm.
  bool Add(double tokens, double share);

  // Shares of the live plan, as they were lately and over a longer time.
  double recent() const { return expected_.value_or(0) + fast_; }
  double usual() const { return expected_.value_or(0) + slow_; }
  double pause_tokens() const { return pause_; }
  int64_t alarms() const { return alarms_; }

 private:
  const DriftOptions options_;
  std::optional<double> expected_;
  double fast_ = 0, slow_ = 0;  // means of the difference
  // Of a token's share, from reports about their fast mean. Begins as if ten reports had shown a
  // usual scatter, so that the first that are far off do not count as noise.
  double variance_ = 0.04;
  double samples_ = 10;
  double since_alarm_ = 0, since_start_ = 0, since_halving_ = 0;
  double pause_;       // in force
  double last_pause_;  // in force after the last alarm
  int64_t alarms_ = 0;
};

}  // namespace isotherm
