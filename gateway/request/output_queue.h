#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "common/base/clock.h"
#include "common/step/step.h"
#include "gateway/scheduling/request_sink.h"

namespace isotherm {

struct AcceptedEvent {
  int32_t prompt_tokens = 0;
  int32_t queue_position = 0;
};
struct ProgressEvent {
  int32_t done_tokens = 0;
  int32_t total_tokens = 0;
};
struct ChunkEvent {
  int32_t choice = 0;
  std::string text;
  std::vector<TokenId> token_ids;
  std::vector<TokenLogprobs> logprobs;
};
struct ChoiceEndEvent {
  int32_t choice = 0;
  FinishReason reason = FinishReason::kStop;
  std::string matched_stop;
};
struct CompleteEvent {
  GenerationStats stats;
};
using OutputEvent =
    std::variant<AcceptedEvent, ProgressEvent, ChunkEvent, ChoiceEndEvent, CompleteEvent>;

// One request's events between the scheduler's thread, which must not wait, and a reader that may
// be slow. A reader that falls behind gets larger chunks, not more of them: memory stays within the
// size of the answer itself. Thread-safe.
class OutputQueue {
 public:
  // on_ready is called without locks held, on the pushing thread, when there is something to read
  // again or the queue was closed; it must not block.
  OutputQueue(const Clock& clock, std::function<void()> on_ready);

  void Push(OutputEvent event);
  // After the events there is this, and nothing else. The first call counts.
  void Close(absl::Status status);

  std::optional<OutputEvent> Pop();
  // Set once everything was popped.
  std::optional<absl::Status> FinalStatus() const;

  // Since when the oldest event has been lying here.
  std::optional<Clock::TimePoint> WaitingSince() const;

 private:
  const Clock& clock_;
  const std::function<void()> on_ready_;
  mutable absl::Mutex mu_;
  std::deque<OutputEvent> events_ ABSL_GUARDED_BY(mu_);
  std::optional<Clock::TimePoint> waiting_since_ ABSL_GUARDED_BY(mu_);
  std::optional<absl::Status> closed_ ABSL_GUARDED_BY(mu_);
};

}  // namespace isotherm
