#pragma once

#include <map>
#include <optional>
#include <vector>

#include "gateway/scheduling/request_sink.h"

namespace isotherm {

// Keeps a request's output and notes calls out of order.
class RecordingSink : public RequestSink {
 public:
  void OnAccepted(int32_t prompt_tokens, int32_t queue_position) override {
    in_order &= !accepted && !finished;
    accepted = true;
    position = queue_position;
  }
  void OnProgress(int32_t done, int32_t total) override {
    in_order &= accepted && !finished && done > progress && done <= total;
    progress = done;
  }
  TokenVerdict OnToken(int32_t choice, TokenId token, const std::optional<TokenLogprobs>&,
                       bool is_stop) override {
    in_order &= accepted && !finished && !ends.contains(choice);
    tokens[choice].push_back(token);
    if (first_token_after < 0 && steps_so_far != nullptr) first_token_after = *steps_so_far;
    return stop_text_after > 0 && tokens[choice].size() >= stop_text_after && !is_stop
               ? TokenVerdict::kStopText
               : TokenVerdict::kContinue;
  }
  void OnChoiceEnd(int32_t choice, FinishReason reason) override {
    in_order &= !finished && ends.emplace(choice, reason).second;
  }
  void OnFinish(absl::Status why, const GenerationStats& s) override {
    in_order &= !finished;
    finished = true;
    status = why;
    stats = s;
  }
  std::optional<Clock::TimePoint> WaitingForReaderSince() const override { return unread_since; }

  bool accepted = false, finished = false, in_order = true;
  int32_t position = -1, progress = 0;
  std::map<int32_t, std::vector<TokenId>> tokens;
  std::map<int32_t, FinishReason> ends;
  absl::Status status;
  GenerationStats stats;
  size_t stop_text_after = 0;  // 0: never
  std::optional<Clock::TimePoint> unread_since;
  const int64_t* steps_so_far = nullptr;
  int64_t first_token_after = -1;
};

}  // namespace isotherm
