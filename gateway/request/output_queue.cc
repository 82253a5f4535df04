#include "gateway/request/output_queue.h"

#include <iterator>
#include <utility>

namespace isotherm {
namespace {

template <typename T>
void MoveTo(std::vector<T>& from, std::vector<T>& to) {
  to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

// True if `event` was merged into `last`.
bool Merge(OutputEvent& last, OutputEvent& event) {
  if (last.index() != event.index()) return false;
  if (auto* progress = std::get_if<ProgressEvent>(&last)) {
    *progress = std::get<ProgressEvent>(event);
    return true;
  }
  auto* chunk = std::get_if<ChunkEvent>(&last);
  if (chunk == nullptr) return false;
  ChunkEvent& more = std::get<ChunkEvent>(event);
  if (chunk->choice != more.choice) return false;
  chunk->text += more.text;
  MoveTo(more.token_ids, chunk->token_ids);
  MoveTo(more.logprobs, chunk->logprobs);
  return true;
}

}  // namespace

OutputQueue::OutputQueue(const Clock& clock, std::function<void()> on_ready)
    : clock_(clock), on_ready_(std::move(on_ready)) {}

void OutputQueue::Push(OutputEvent event) {
  {
    absl::MutexLock lock(&mu_);
    if (closed_.has_value()) return;
    if (!events_.empty() && Merge(events_.back(), event)) return;
    if (events_.empty()) waiting_since_ = clock_.Now();
    events_.push_back(std::move(event));
  }
  on_ready_();
}

void OutputQueue::Close(absl::Status status) {
  {
    absl::MutexLock lock(&mu_);
    if (closed_.has_value()) return;
    closed_ = std::move(status);
  }
  on_ready_();
}

std::optional<OutputEvent> OutputQueue::Pop() {
  absl::MutexLock lock(&mu_);
  if (events_.empty()) return std::nullopt;
  OutputEvent event = std::move(events_.front());
  events_.pop_front();
  waiting_since_.reset();
  if (!events_.empty()) waiting_since_ = clock_.Now();
  return event;
}

std::optional<absl::Status> OutputQueue::FinalStatus() const {
  absl::MutexLock lock(&mu_);
  if (!events_.empty()) return std::nullopt;
  return closed_;
}

std::optional<Clock::TimePoint> OutputQueue::WaitingSince() const {
  absl::MutexLock lock(&mu_);
  return waiting_since_;
}

}  // namespace isotherm
