#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <vector>

#include "common/base/clock.h"
#include "common/step/step.h"

namespace isotherm {

struct SentRow {
  SequenceId wire_id = 0;
  int32_t num_tokens = 0;  // rows of the sequence in the request's first step
  bool sample = false;
};

// A request on its way: ids step_id .. step_id + grant.
struct SentStep {
  int64_t step_id = 0;
  int32_t grant = 0;
  int64_t epoch = 0;
  bool to_cpu = false;  // the cpu_worker got it too
  Clock::TimePoint sent_at{};
  std::vector<SentRow> rows;
  std::vector<SequenceId> releases;
  int32_t arrived = 0;  // steps of it whose result came

  int32_t steps_left() const { return 1 + grant - arrived; }
};

// A gpu result that waits for its completeness check.
struct ArrivedStep {
  StepResult result;
  std::vector<SentRow> rows;
  bool to_cpu = false;
  Clock::TimePoint arrived_at{};
};

enum class Completeness { kNothing, kWaiting, kComplete, kMismatch, kCpuHashLost };

// What is at the workers and what came back: matches results to requests by step id, joins the two
// workers' hashes, keeps order. Results of forgotten, doubled or never sent steps are dropped and
// counted. One thread.
class StepLedger {
 public:
  enum class Arrival { kIgnored, kAccepted, kGap };
  struct ArrivalOutcome {
    Arrival kind = Arrival::kIgnored;
    SentStep step;                // as it was before the result; of kAccepted and kGap
    std::vector<SentStep> ended;  // requests of which no further step comes
  };

  void Add(SentStep step);
  // kGap: steps of ours were skipped, the stream cannot be trusted.
  ArrivalOutcome OnGpuResult(StepResult result, Clock::TimePoint now);
  void OnCpuResult(int64_t step_id, uint64_t work_hash);
  // Whether the step was sent and neither released nor forgotten.
  bool IsOutstanding(int64_t step_id) const;
  // The cpu_worker's stream broke: nothing more comes for the steps sent to it.
  void OnCpuLost();

  // Whether the oldest arrived step may be released: gpu work + cpu work == owed, or gpu work alone
  // when the cpu_worker had no part in it (recomputed, not attached). With the cpu_worker attached
  // its word is waited for until `verify_timeout` after arrival.
  Completeness CheckOldest(bool cpu_attached, Clock::TimePoint now,
                           std::chrono::nanoseconds verify_timeout) const;
  const ArrivedStep& oldest() const { return arrived_.front(); }
  ArrivedStep PopOldest();

  const std::deque<SentStep>& in_flight() const { return in_flight_; }
  const std::deque<ArrivedStep>& arrived() const { return arrived_; }
  // Ids at or above are unused.
  int64_t next_step_id() const { return next_step_id_; }
  // Forgets everything sent and arrived: late results will be ignored.
  void Clear();
  int64_t num_ignored() const { return num_ignored_; }

 private:
  std::deque<SentStep> in_flight_;  // in the order sent; at most two
  std::deque<ArrivedStep> arrived_;
  std::map<int64_t, uint64_t> cpu_hashes_;  // of steps sent and not released
  int64_t next_step_id_ = 1;
  int64_t oldest_live_id_ = 1;
  int64_t num_ignored_ = 0;
};

}  // namespace isotherm
