// What comes back from the workers, and what follows when it does not.

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/process/log.h"
#include "gateway/scheduling/scheduler.h"

namespace isotherm {
namespace {

// Restarts that are nobody's fault (an epoch race, a lost cpu_worker) between two tokens.
constexpr int32_t kMaxFreeRetries = 16;
constexpr int32_t kMaxKvPages = 1 << 24;

bool IsUsable(const WorkerHello& hello) {
  return hello.kv_pages > 0 && hello.kv_pages <= kMaxKvPages &&
         (hello.kv_pages_most == 0 ||
          (hello.kv_pages_most >= hello.kv_pages && hello.kv_pages_most <= kMaxKvPages)) &&
         hello.page_size > 0 && hello.page_size <= 4096 && hello.max_rows > 0 &&
         hello.context_length > 0 && !hello.instance_id.empty();
}

absl::Status StepFailed() {
  return WithErrorReason(
      absl::AbortedError("generation failed after it had begun; ask again from the start"),
      {.reason = "STEP_FAILED"});
}

absl::Status Internal(absl::string_view message) {
  return WithErrorReason(absl::InternalError(message), {.reason = "INTERNAL"});
}

}  // namespace

void LayerTimes::Add(const LayerTiming& timing) {
  const auto us = [](float value) { return static_cast<double>(value); };
  ++layers;
  attention_us += us(timing.attention_us);
  predict_us += us(timing.predict_us);
  hot_us += us(timing.gpu_us);
  cold_us += us(timing.cpu_us);
  streamed_us += us(timing.streamed_us);
  wait_us += us(timing.wait_us);
  merge_us += us(timing.merge_us);
  if (timing.wait_us <= 0) return;  // nothing was handed over
  const double own_us = std::max(us(timing.gpu_us), us(timing.streamed_us));
  handoff_us += std::max(
      0.0, us(timing.post_us) + own_us + us(timing.wait_us) - std::max(own_us, us(timing.cpu_us)));
}

void Scheduler::OnHello(WorkerKind kind, WorkerHello hello) {
  if (kind == WorkerKind::kCpu) {
    cpu_stream_up_ = true;
    epochs_.SetCpuEpochs(hello.epochs);
  } else if (!IsUsable(hello)) {
    LogError(
        "the gpu_worker's hello is out of bounds: kv_pages={} page_size={} max_rows={} "
        "context={}; are both of one version?",
        hello.kv_pages, hello.page_size, hello.max_rows, hello.context_length);
    OnGpuLost(absl::FailedPreconditionError("the worker's hello is out of bounds"));
    return;
  } else {
    if (gpu_hello_.has_value() && gpu_hello_->instance_id != hello.instance_id) {
      OnGpuLost(absl::UnavailableError("the worker was restarted"));
    }
    epochs_.SetGpuEpochs(hello.epochs);
    if (!gpu_hello_.has_value()) {
      LogInfo("gpu_worker attached: {} KV pages of {}, context {}, {} rows a step", hello.kv_pages,
              hello.page_size, hello.context_length, hello.max_rows);
      pages_ = PagePool(std::max(hello.kv_pages, hello.kv_pages_most), hello.kv_pages);
      kv_demand_ = KvDemand();
      gpu_hello_ = std::move(hello);
      // What waits was sized for the worker before; a smaller one may not do.
      std::vector<std::pair<ScheduledRequest*, absl::Status>> too_long;
      for (const WaitingKey& key : waiting_) {
        ScheduledRequest& request = *requests_.at(std::get<RequestHandle>(key));
        GenerationRequest resolved = request.params;
        resolved.max_tokens = request.max_tokens;
        int32_t unused = 0;
        if (absl::Status status = Resolve(resolved, unused); !status.ok()) {
          too_long.emplace_back(&request, std::move(status));
        }
      }
      for (const auto& [request, status] : too_long) Finish(*request, status);
    } else {
      if (hello.kv_pages != gpu_hello_->kv_pages) {
        LogInfo("the gpu_worker has {} KV pages now", hello.kv_pages);
        gpu_hello_->kv_pages = hello.kv_pages;
        pages_.SetLimit(hello.kv_pages);
      }
      gpu_hello_->epochs = std::move(hello.epochs);
      gpu_hello_->peer_attached = hello.peer_attached;
    }
  }
  UpdateCpuAttached();
  ReleaseVerified();
  Pump();
}

void Scheduler::UpdateCpuAttached() {
  const bool peer = gpu_hello_.has_value() && gpu_hello_->peer_attached;
  cpu_attached_ = cpu_stream_up_ && peer;
  if (!peer || cpu_stream_up_) {
    cpu_stream_missing_since_.reset();
  } else if (!cpu_stream_missing_since_.has_value()) {
    cpu_stream_missing_since_ = clock_.Now();
  }
}

void Scheduler::OnDisconnected(WorkerKind kind, absl::Status why) {
  if (kind == WorkerKind::kGpu) {
    OnGpuLost(why);
    UpdateCpuAttached();
    return;
  }
  cpu_stream_up_ = false;
  epochs_.SetCpuEpochs(std::nullopt);
  ledger_.OnCpuLost();
  UpdateCpuAttached();
  ReleaseVerified();
  Pump();
}

void Scheduler::OnLive(int64_t epoch) {
  epochs_.OnLive(epoch);
  Pump();
}

void Scheduler::OnRetired(int64_t epoch) {
  epochs_.OnRetired(epoch);
  Pump();
}

void Scheduler::OnResult(WorkerKind kind, StepResult result) {
  if (kind == WorkerKind::kCpu) {
    OnCpuResult(result);
  } else {
    OnGpuResult(std::move(result));
  }
  ReleaseVerified();
  Pump();
}

void Scheduler::OnCpuResult(const StepResult& result) {
  if (result.error_code == 0) {
    ledger_.OnCpuResult(result.step_id, result.work_hash);
    return;
  }
  // Without its hash the step is never released, so an error that is no refusal needs nothing more.
  const auto code = static_cast<absl::StatusCode>(result.error_code);
  if (code == absl::StatusCode::kDataLoss) return OnDamagedWeights();
  if (code != absl::StatusCode::kAborted || !ledger_.IsOutstanding(result.step_id)) return;
  epochs_.OnRefused(result.epoch);
  FailStep(FaultKind::kEpoch, {}, absl::AbortedError("the cpu_worker refused a step's epoch"));
}

// Weights were damaged since nobody knows when, and are mended: what was sent may be wrong.
void Scheduler::OnDamagedWeights() {
  const absl::Status why = absl::DataLossError("weights of the cpu_worker were damaged");
  FailStep(FaultKind::kDamagedWeights, {}, why);
  const std::vector<ScheduledRequest*> running = running_;
  for (ScheduledRequest* request : running)
    RestartAfterFault(*request, FaultKind::kDamagedWeights, false, why);
}

void Scheduler::OnGpuResult(StepResult result) {
  const int32_t error_code = result.error_code;
  const std::string error_message = result.error_message;
  const int64_t epoch = result.epoch;
  StepLedger::ArrivalOutcome outcome = ledger_.OnGpuResult(std::move(result), clock_.Now());
  switch (outcome.kind) {
    case StepLedger::Arrival::kIgnored:
      return;
    case StepLedger::Arrival::kGap:
      FailStep(FaultKind::kStep, outcome.step.rows,
               absl::InternalError("the worker skipped a step"));
      return;
    case StepLedger::Arrival::kAccepted:
      break;
  }
  if (error_code != 0) {
    const auto code = static_cast<absl::StatusCode>(error_code);
    const bool stale = code == absl::StatusCode::kAborted && outcome.step.epoch != kBuiltInEpoch;
    if (stale) epochs_.OnRefused(outcome.step.epoch);
    FailStep(stale ? FaultKind::kEpoch : FaultKind::kStep, outcome.step.rows,
             absl::Status(code, absl::StrCat("the gpu_worker reported: ", error_message)));
    return;
  }
  if (epoch != outcome.step.epoch) {
    FailStep(FaultKind::kStep, outcome.step.rows,
             absl::InternalError("a step ran under another epoch than asked"));
    return;
  }
  const bool first = outcome.step.arrived == 0;
  for (const SentRow& row : outcome.step.rows) {
    if (!first && !row.sample) continue;
    if (const auto ref = FindWire(row.wire_id); ref.has_value()) {
      ref->sequence().arrived_len += first ? row.num_tokens : 1;
    }
  }
  for (const SentStep& ended : outcome.ended) {
    for (const SentRow& row : ended.rows) {
      if (!row.sample) continue;
      if (const auto ref = FindWire(row.wire_id); ref.has_value()) {
        ref->sequence().planned_len -= ended.steps_left();
      }
    }
  }
}

void Scheduler::ReleaseVerified() {
  while (true) {
    switch (ledger_.CheckOldest(cpu_attached_, clock_.Now(), options_.verify_timeout)) {
      case Completeness::kNothing:
      case Completeness::kWaiting:
        return;
      case Completeness::kComplete:
        Apply(ledger_.PopOldest());
        break;
      case Completeness::kMismatch: {
        ++hash_mismatches_;
        const std::vector<SentRow> blamed = ledger_.oldest().rows;
        FailStep(FaultKind::kWrongHash, blamed,
                 absl::DataLossError("a step's completeness hash is wrong"));
        return;
      }
      case Completeness::kCpuHashLost: {
        const std::vector<SentRow> blamed = ledger_.oldest().rows;
        FailStep(FaultKind::kHashLost, blamed,
                 absl::UnavailableError("the cpu_worker's hash of a step was lost"));
        return;
      }
    }
  }
}

void Scheduler::Apply(ArrivedStep step) {
  // Which requests took part, each once.
  std::vector<RequestHandle> handles;
  for (const SentRow& row : step.rows) {
    const auto ref = FindWire(row.wire_id);
    if (!ref.has_value()) continue;
    if (std::find(handles.begin(), handles.end(), ref->request->handle) == handles.end()) {
      handles.push_back(ref->request->handle);
      ref->request->active_neurons += step.result.active_neurons;
      ref->request->hot_neurons += step.result.hot_neurons;
      ref->request->epoch = step.result.epoch;
      // Of the first token on: a prompt's steps have their own proportions.
      if (ref->request->params.layer_timings && ref->request->first_token.has_value()) {
        for (const LayerTiming& timing : step.result.timings) ref->request->layer_times.Add(timing);
      }
    }
    const int64_t total = ref->request->prompt_len();
    const int64_t done = std::min(total, ref->sequence().arrived_len);
    if (ref->choice == 0 && done > ref->request->progress_reported) {
      ref->request->progress_reported = done;
      ref->request->sink->OnProgress(static_cast<int32_t>(done), static_cast<int32_t>(total));
    }
  }
  std::vector<SentRow> faulty;
  for (const SentRow& sent : step.rows) {
    const auto ref = FindWire(sent.wire_id);
    if (!sent.sample || !ref.has_value()) continue;
    const auto row = std::find_if(step.result.rows.begin(), step.result.rows.end(),
                                  [&](const RowResult& r) { return r.sequence == sent.wire_id; });
    const int64_t position = static_cast<int64_t>(ref->sequence().tokens.size()) - 1;
    const bool sound = row != step.result.rows.end() && row->status != RowStatus::kNoPage &&
                       row->position == position && row->token_id >= 0 &&
                       (options_.vocab_size == 0 || row->token_id < options_.vocab_size);
    if (sound) {
      ApplyRow(*ref, *row);
    } else {
      faulty.push_back(sent);
    }
  }
  if (!faulty.empty()) {
    FailStep(FaultKind::kWrongHash, faulty, absl::InternalError("a step lacks a sequence's token"));
  }
}

void Scheduler::ApplyRow(SequenceRef ref, const RowResult& row) {
  ScheduledRequest& request = *ref.request;
  Sequence& sequence = ref.sequence();
  if (!request.first_token.has_value()) request.first_token = clock_.Now();
  request.free_retries = 0;
  sequence.tokens.push_back(row.token_id);
  ++sequence.generated;
  const std::vector<TokenId>& stops = request.params.stop_token_ids;
  const bool is_stop = sequence.generated > request.params.min_tokens &&
                       std::find(stops.begin(), stops.end(), row.token_id) != stops.end();
  const TokenVerdict verdict =
      request.sink->OnToken(ref.choice, row.token_id, row.logprobs, is_stop);
  if (is_stop || verdict == TokenVerdict::kStopText) {
    EndChoice(request, ref.choice, FinishReason::kStop);
  } else if (sequence.generated >= request.max_tokens) {
    EndChoice(request, ref.choice, FinishReason::kLength);
  }
}

void Scheduler::FailStep(FaultKind kind, const std::vector<SentRow>& blamed,
                         const absl::Status& why) {
  ++step_failures_;
  LogWarning("a step of {} sequences failed: {}", blamed.size(), std::string(why.message()));
  // Everything sent or unverified rests on the failed step: it is thrown away, and each sequence in
  // it begins anew from its tokens under another name, so that nothing late can be taken for it.
  std::vector<SequenceId> touched;
  touched.reserve(blamed.size());
  for (const SentRow& row : blamed) touched.push_back(row.wire_id);
  for (const ArrivedStep& step : ledger_.arrived()) {
    for (const SentRow& row : step.rows) touched.push_back(row.wire_id);
  }
  for (const SentStep& step : ledger_.in_flight()) {
    for (const SentRow& row : step.rows) touched.push_back(row.wire_id);
    // It may be dropped unread: what it was to release is said again (an unknown name is no error).
    if (step.arrived == 0) {
      pending_releases_.insert(pending_releases_.end(), step.releases.begin(), step.releases.end());
    }
  }
  ledger_.Clear();
  batch_changed_ = false;
  gpu_.Abort();
  if (cpu_stream_up_) cpu_.Abort();
  std::vector<RequestHandle> handles;
  std::vector<RequestHandle> blamed_handles;
  for (size_t i = 0; i < touched.size(); ++i) {
    const auto ref = FindWire(touched[i]);
    if (!ref.has_value()) continue;
    if (i < blamed.size()) {
      blamed_handles.push_back(ref->request->handle);
      if (kind == FaultKind::kWrongHash &&
          std::find(touched.begin(), touched.begin() + static_cast<int64_t>(i), touched[i]) ==
              touched.begin() + static_cast<int64_t>(i)) {
        ++ref->sequence().faults;
      }
    }
    handles.push_back(ref->request->handle);
  }
  for (const RequestHandle handle : handles) {
    const auto it = requests_.find(handle);
    if (it == requests_.end() || !it->second->running) continue;
    const bool is_blamed =
        std::find(blamed_handles.begin(), blamed_handles.end(), handle) != blamed_handles.end();
    RestartAfterFault(*it->second, kind, is_blamed, why);
  }
}

void Scheduler::RestartAfterFault(ScheduledRequest& request, FaultKind kind, bool blamed,
                                  const absl::Status& why) {
  switch (kind) {
    case FaultKind::kStep:
      if (!blamed) break;
      if (request.any_token_released()) return Finish(request, StepFailed());
      if (++request.step_failures > 1) {
        return Finish(request, Internal("the request's steps failed twice"));
      }
      break;
    case FaultKind::kWrongHash:
      for (const Sequence& sequence : request.sequences) {
        if (sequence.faults > 1) {
          return Finish(request, WithErrorReason(
                                     absl::DataLossError("parts of the request's results were lost "
                                                         "or doubled, twice; it was given up"),
                                     {.reason = "INTERNAL"}));
        }
      }
      break;
    case FaultKind::kDamagedWeights:
      if (request.any_token_released()) {
        return Finish(request, WithErrorReason(absl::DataLossError(
                                                   "memory was damaged while this was computed, "
                                                   "and has been mended; ask again"),
                                               {.reason = "INTERNAL"}));
      }
      break;
    case FaultKind::kEpoch:
    case FaultKind::kHashLost:
      if (++request.free_retries > kMaxFreeRetries) {
        return Finish(
            request,
            request.any_token_released()
                ? StepFailed()
                : WithErrorReason(absl::UnavailableError("the workers do not agree; try again"),
                                  {.reason = "NO_WORKER", .retry_after = options_.retry_after}));
      }
      break;
  }
  Preempt(request);
}

void Scheduler::OnGpuLost(const absl::Status& why) {
  if (!gpu_hello_.has_value()) return;
  if (!draining_ || !running_.empty()) {  // at an orderly end it is no loss
    LogWarning("gpu_worker lost with {} requests running: {}", running_.size(),
               std::string(why.message()));
  }
  ++step_failures_;
  std::vector<RequestHandle> at_work;
  for (const SentStep& step : ledger_.in_flight()) {
    for (const SentRow& row : step.rows) {
      if (const auto ref = FindWire(row.wire_id)) at_work.push_back(ref->request->handle);
    }
  }
  ledger_.Clear();
  batch_changed_ = false;
  const std::vector<ScheduledRequest*> running = running_;
  for (ScheduledRequest* request : running) {
    if (request->any_token_released()) {
      Finish(*request, StepFailed());
      continue;
    }
    const bool was_at_work =
        std::find(at_work.begin(), at_work.end(), request->handle) != at_work.end();
    if (was_at_work && ++request->worker_deaths > 1) {
      Finish(*request, Internal("two workers failed on this request; it was given up"));
      continue;
    }
    Preempt(*request);
  }
  pending_releases_.clear();  // the worker's memory is gone with it
  gpu_hello_.reset();
  pages_ = PagePool();
}

}  // namespace isotherm
