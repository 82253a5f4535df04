#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/step/step.h"
#include "gateway/scheduling/request_sink.h"

namespace isotherm {

using RequestHandle = int64_t;

// What the scheduler needs to know of a request; all bounds but those of the worker (context, KV)
// were checked before.
struct GenerationRequest {
  std::string request_id;
  std::vector<TokenId> prompt;          // at least one
  SamplingParams sampling;              // of choice 0; the others' seeds derive from its seed
  std::vector<TokenId> stop_token_ids;  // end-of-text tokens too, unless they are ignored
  std::optional<int32_t> max_tokens;    // absent: what context and KV leave
  int32_t min_tokens = 0;
  int32_t num_choices = 1;
  int32_t top_logprobs = -1;
  bool exact = false;
  bool layer_timings = false;
  int32_t priority = 0;  // lower runs first
  Clock::TimePoint deadline = Clock::TimePoint::max();
};

// One choice. Lengths count KV positions of the present incarnation: from the moment the sequence
// is brought to the worker until it is released there (end, preemption, failure).
struct Sequence {
  std::vector<TokenId> tokens;  // the prompt, then every token released
  int32_t generated = 0;        // of them, released
  bool done = false;

  SequenceId wire_id = 0;      // the worker's name of this incarnation; 0: not there
  std::vector<int32_t> pages;  // held
  size_t pages_sent = 0;       // of them, in the worker's page table
  int64_t feed_len = 0;        // tokens to send as they are; later ones the worker samples itself
  int64_t planned_len = 0;     // once all that was sent has run in full; an upper bound
  int64_t arrived_len = 0;     // by results seen, verified or not
  bool introduced = false;     // its sampling was sent
  int32_t faults = 0;          // steps that failed for a wrong hash or row

  bool on_worker() const { return wire_id != 0; }
  bool in_prefill() const { return planned_len < feed_len; }
};

struct ScheduledRequest {
  RequestHandle handle = 0;
  GenerationRequest params;
  int32_t max_tokens = 0;  // resolved
  RequestSink* sink = nullptr;
  std::vector<Sequence> sequences;
  uint64_t arrival = 0;
  bool running = false;
  int64_t progress_reported = 0;  // prompt tokens; never told again after a restart

  int32_t worker_deaths = 0;
  int32_t step_failures = 0;
  int32_t free_retries = 0;  // restarts nobody is to blame for, since the last token

  Clock::TimePoint submitted{};
  std::optional<Clock::TimePoint> admitted;
  std::optional<Clock::TimePoint> first_token;
  int64_t active_neurons = 0;
  int64_t hot_neurons = 0;
  int64_t epoch = 0;
  LayerTimes layer_times;

  int32_t num_choices() const { return static_cast<int32_t>(sequences.size()); }
  bool any_token_released() const {
    return std::any_of(sequences.begin(), sequences.end(),
                       [](const Sequence& s) { return s.generated > 0; });
  }
  bool all_done() const {
    return std::all_of(sequences.begin(), sequences.end(),
                       [](const Sequence& s) { return s.done; });
  }
  int64_t prompt_len() const { return static_cast<int64_t>(params.prompt.size()); }
};

}  // namespace isotherm
