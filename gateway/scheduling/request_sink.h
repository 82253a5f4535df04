#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "common/base/clock.h"
#include "common/step/step.h"

namespace isotherm {

enum class FinishReason { kStop, kLength };

// Whether a choice goes on after a token.
enum class TokenVerdict { kContinue, kStopText };

// Where the layers of a request's decode steps spent their time: sums in us over `layers`.
struct LayerTimes {
  int64_t layers = 0;
  double attention_us = 0, predict_us = 0;
  double hot_us = 0, cold_us = 0, streamed_us = 0;  // side by side
  double wait_us = 0;
  double merge_us = 0;
  double handoff_us = 0;  // from post to cold sums, less the longer of hot and cold

  void Add(const LayerTiming& timing);
};

struct GenerationStats {
  int32_t prompt_tokens = 0;
  int32_t completion_tokens = 0;  // of all choices
  double queue_ms = 0;
  double prefill_ms = 0;  // admission to the first token
  double time_to_first_token_ms = 0;
  double decode_ms = 0;
  double gpu_hit_share = 0;
  int64_t epoch = 0;  // of the last step
  LayerTimes layers;  // when the request asked for them
};

// Where the scheduler puts one request's output. Every call comes from the scheduler's thread and
// must not block. Order: OnAccepted, OnProgress*, OnToken*, OnChoiceEnd once per choice,
// OnFinish(OK); a request that is refused or fails gets OnFinish(error) after any prefix of that.
// OnFinish comes exactly once and last; the scheduler never touches the sink again.
class RequestSink {
 public:
  virtual ~RequestSink() = default;
  // queue_position: how many requests run first.
  virtual void OnAccepted(int32_t prompt_tokens, int32_t queue_position) = 0;
  virtual void OnProgress(int32_t done_tokens, int32_t total_tokens) = 0;
  // is_stop_token: the token ends the choice. kStopText: the text ends it (a stop string).
  virtual TokenVerdict OnToken(int32_t choice, TokenId token,
                               const std::optional<TokenLogprobs>& logprobs,
                               bool is_stop_token) = 0;
  virtual void OnChoiceEnd(int32_t choice, FinishReason reason) = 0;
  virtual void OnFinish(absl::Status status, const GenerationStats& stats) = 0;
  // Since when output has been waiting for its reader; nullopt: it is not.
  virtual std::optional<Clock::TimePoint> WaitingForReaderSince() const = 0;
};

}  // namespace isotherm
