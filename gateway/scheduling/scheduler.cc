#include "gateway/scheduling/scheduler.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/checked_math.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "gateway/request/derive_seed.h"

namespace isotherm {
namespace {

double Ms(Clock::TimePoint from, Clock::TimePoint to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

absl::Status TooLong(absl::string_view message) {
  return WithErrorReason(absl::InvalidArgumentError(message),
                         {.reason = "CONTEXT_LENGTH_EXCEEDED", .field = "stop.max_tokens"});
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, WorkerClient& gpu, WorkerClient& cpu,
                     const Clock& clock)
    : options_(options), gpu_(gpu), cpu_(cpu), clock_(clock) {}

absl::Status Scheduler::Resolve(const GenerationRequest& request, int32_t& max_tokens) const {
  const int64_t prompt = static_cast<int64_t>(request.prompt.size());
  const int64_t context = gpu_hello_->context_length;
  // Each choice needs pages of its own, all at once in the worst case.
  const int64_t kv = int64_t{pages_.most() / request.num_choices} * gpu_hello_->page_size;
  const int64_t room = std::min(context, kv) - prompt;
  const int64_t wanted = request.max_tokens.value_or(
      static_cast<int32_t>(std::clamp<int64_t>(room, 1, std::numeric_limits<int32_t>::max())));
  if (wanted > room) {
    return TooLong(absl::StrCat("prompt of ", prompt, " tokens plus max_tokens ", wanted,
                                " needs more than the ", std::min(context, kv),
                                " tokens that each of ", request.num_choices,
                                " choices can have; shorten the prompt or lower max_tokens"));
  }
  max_tokens = static_cast<int32_t>(wanted);
  return absl::OkStatus();
}

RequestHandle Scheduler::Submit(GenerationRequest params, RequestSink* sink) {
  const Clock::TimePoint now = clock_.Now();
  int32_t max_tokens = 0;
  const absl::Status status = [&]() -> absl::Status {
    if (draining_) {
      return WithErrorReason(absl::UnavailableError("the server is shutting down"),
                             {.reason = "DRAINING", .retry_after = options_.retry_after});
    }
    if (!gpu_hello_.has_value()) {
      return WithErrorReason(absl::UnavailableError("no worker is attached; try again soon"),
                             {.reason = "NO_WORKER", .retry_after = options_.retry_after});
    }
    if (params.prompt.empty()) {
      return WithErrorReason(absl::InvalidArgumentError("the prompt has no token"),
                             {.reason = "INVALID_VALUE", .field = "prompt"});
    }
    if (by_id_.contains(params.request_id)) {
      return WithErrorReason(absl::InvalidArgumentError("request_id is in use by a live request"),
                             {.reason = "INVALID_VALUE", .field = "request_id"});
    }
    if (params.num_choices > gpu_hello_->max_rows) {
      return WithErrorReason(
          absl::InvalidArgumentError(absl::StrCat("n is ", params.num_choices, ", the worker runs ",
                                                  gpu_hello_->max_rows, " rows at once")),
          {.reason = "INVALID_VALUE", .field = "sampling.n"});
    }
    ISOTHERM_RETURN_IF_ERROR(Resolve(params, max_tokens));
    if (params.deadline <= now) {
      return WithErrorReason(absl::DeadlineExceededError("the deadline has passed"),
                             {.reason = "DEADLINE"});
    }
    if (static_cast<int64_t>(waiting_.size()) >= options_.max_queue) {
      return WithErrorReason(absl::ResourceExhaustedError(absl::StrCat(
                                 waiting_.size(), " requests wait already; try again later")),
                             {.reason = "QUEUE_FULL", .retry_after = options_.retry_after});
    }
    return absl::OkStatus();
  }();
  if (!status.ok()) {
    sink->OnFinish(status, {});
    return 0;
  }

  auto owned = std::make_unique<ScheduledRequest>();
  ScheduledRequest& request = *owned;
  request.handle = next_handle_++;
  request.arrival = next_arrival_++;
  request.max_tokens = max_tokens;
  request.params = std::move(params);
  request.sink = sink;
  request.submitted = now;
  request.sequences.resize(static_cast<size_t>(request.params.num_choices));
  for (Sequence& sequence : request.sequences) sequence.tokens = request.params.prompt;
  const RequestHandle handle = request.handle;
  by_id_.emplace(request.params.request_id, handle);
  requests_.emplace(handle, std::move(owned));
  Enqueue(request);
  const auto position = std::distance(
      waiting_.begin(), waiting_.find({request.params.priority, request.arrival, handle}));
  sink->OnAccepted(static_cast<int32_t>(request.prompt_len()), static_cast<int32_t>(position));
  Pump();
  return handle;
}

void Scheduler::Enqueue(ScheduledRequest& request) {
  request.running = false;
  waiting_.emplace(request.params.priority, request.arrival, request.handle);
}

void Scheduler::Detach(Sequence& sequence) {
  if (!sequence.on_worker()) return;
  for (const SentStep& sent : ledger_.in_flight()) {
    for (const SentRow& row : sent.rows) batch_changed_ |= row.wire_id == sequence.wire_id;
  }
  by_wire_.erase(sequence.wire_id);
  if (sequence.introduced) pending_releases_.push_back(sequence.wire_id);
  pages_.Return(sequence.pages);
  sequence.wire_id = 0;
  sequence.pages_sent = 0;
  sequence.feed_len = sequence.planned_len = sequence.arrived_len = 0;
  sequence.introduced = false;
}

void Scheduler::Preempt(ScheduledRequest& request) {
  for (Sequence& sequence : request.sequences) Detach(sequence);
  std::erase(running_, &request);
  Enqueue(request);
}

void Scheduler::EndChoice(ScheduledRequest& request, int32_t choice, FinishReason reason) {
  Sequence& sequence = request.sequences[static_cast<size_t>(choice)];
  sequence.done = true;
  Detach(sequence);
  request.sink->OnChoiceEnd(choice, reason);
  if (request.all_done()) Finish(request, absl::OkStatus());
}

void Scheduler::Finish(ScheduledRequest& request, const absl::Status& status) {
  const Clock::TimePoint now = clock_.Now();
  GenerationStats stats;
  stats.prompt_tokens = static_cast<int32_t>(request.prompt_len());
  for (Sequence& sequence : request.sequences) {
    stats.completion_tokens += sequence.generated;
    Detach(sequence);
  }
  const Clock::TimePoint admitted = request.admitted.value_or(now);
  const Clock::TimePoint first = request.first_token.value_or(now);
  stats.queue_ms = Ms(request.submitted, admitted);
  stats.prefill_ms = Ms(admitted, first);
  stats.time_to_first_token_ms = Ms(request.submitted, first);
  stats.decode_ms = Ms(first, now);
  stats.gpu_hit_share = request.active_neurons > 0 ? static_cast<double>(request.hot_neurons) /
                                                         static_cast<double>(request.active_neurons)
                                                   : 0;
  stats.epoch = request.epoch;
  stats.layers = request.layer_times;
  std::erase(running_, &request);
  waiting_.erase({request.params.priority, request.arrival, request.handle});
  by_id_.erase(request.params.request_id);
  auto owned = requests_.extract(request.handle);
  request.sink->OnFinish(status, stats);
}

void Scheduler::Cancel(RequestHandle handle, const absl::Status& why) {
  const auto it = requests_.find(handle);
  if (it == requests_.end()) return;
  Finish(*it->second, why);
  Pump();
}

bool Scheduler::CancelById(absl::string_view request_id, const absl::Status& why) {
  const auto it = by_id_.find(request_id);
  if (it == by_id_.end()) return false;
  Cancel(it->second, why);
  return true;
}

void Scheduler::CancelAll(const absl::Status& why) {
  while (!requests_.empty()) Finish(*requests_.begin()->second, why);
  Pump();
}

void Scheduler::SetModelLimits(TokenId vocab_size, int32_t num_layers) {
  options_.vocab_size = vocab_size;
  options_.num_layers = num_layers;
}

void Scheduler::Drain() { draining_ = true; }

void Scheduler::Tick() {
  const Clock::TimePoint now = clock_.Now();
  std::vector<std::pair<RequestHandle, absl::Status>> ended;
  for (const auto& [handle, request] : requests_) {
    const auto waiting_since = request->sink->WaitingForReaderSince();
    if (request->params.deadline <= now) {
      ended.emplace_back(
          handle, WithErrorReason(absl::DeadlineExceededError("the request's deadline has passed"),
                                  {.reason = "DEADLINE"}));
    } else if (waiting_since.has_value() && *waiting_since + options_.reader_timeout <= now) {
      ended.emplace_back(
          handle,
          WithErrorReason(absl::DeadlineExceededError(absl::StrCat(
                              "output was not read for ", options_.reader_timeout.count(), " ms")),
                          {.reason = "DEADLINE"}));
    }
  }
  for (const auto& [handle, why] : ended) Finish(*requests_.at(handle), why);
  ReleaseVerified();
  if (!ledger_.in_flight().empty() &&
      ledger_.in_flight().front().sent_at + options_.step_timeout <= now) {
    FailStep(FaultKind::kStep, ledger_.in_flight().front().rows,
             absl::UnavailableError("a step did not come back in time"));
  }
  Pump();
}

std::optional<Clock::TimePoint> Scheduler::NextWakeup() const {
  std::optional<Clock::TimePoint> next;
  const auto at = [&next](Clock::TimePoint time) {
    if (!next.has_value() || time < *next) next = time;
  };
  for (const auto& [handle, request] : requests_) {
    if (request->params.deadline != Clock::TimePoint::max()) at(request->params.deadline);
    if (const auto since = request->sink->WaitingForReaderSince(); since.has_value()) {
      at(*since + options_.reader_timeout);
    }
  }
  if (!ledger_.arrived().empty()) at(ledger_.oldest().arrived_at + options_.verify_timeout);
  if (cpu_stream_missing_since_.has_value() && HeldBack()) {
    at(*cpu_stream_missing_since_ + options_.cpu_stream_grace);
  }
  if (!ledger_.in_flight().empty()) {
    at(ledger_.in_flight().front().sent_at + options_.step_timeout);
  }
  return next;
}

std::optional<Scheduler::SequenceRef> Scheduler::FindWire(SequenceId wire_id) const {
  const auto it = by_wire_.find(wire_id);
  if (it == by_wire_.end()) return std::nullopt;
  return it->second;
}

int32_t Scheduler::num_running_sequences() const { return static_cast<int32_t>(by_wire_.size()); }

SchedulerState Scheduler::state() const {
  SchedulerState state{.gpu_attached = gpu_hello_.has_value(),
                       .cpu_attached = cpu_attached_,
                       .draining = draining_,
                       .num_running = static_cast<int32_t>(running_.size()),
                       .num_waiting = static_cast<int32_t>(waiting_.size()),
                       .context_length = gpu_hello_.has_value() ? gpu_hello_->context_length : 0,
                       .pages_total = pages_.total(),
                       .pages_free = pages_.free(),
                       .preemptions = preemptions_,
                       .step_failures = step_failures_,
                       .hash_mismatches = hash_mismatches_,
                       .ignored_results = ledger_.num_ignored()};
  for (const auto& [wire, ref] : by_wire_) {
    state.pages_held += static_cast<int32_t>(ref.sequence().pages.size());
  }
  return state;
}

}  // namespace isotherm
