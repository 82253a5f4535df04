#include "tests/fakes/fake_step_workers.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace isotherm {

TokenId FakeModel::Next(const std::vector<TokenId>& tokens, int64_t seed,
                        int32_t num_sampled) const {
  uint64_t hash = static_cast<uint64_t>(seed + 7919 * num_sampled) * 0x9e3779b97f4a7c15u + 1;
  for (const TokenId token : tokens) {
    hash = (hash ^ static_cast<uint64_t>(token + 7)) * 0xff51afd7ed558ccdu;
    hash ^= hash >> 29;
  }
  return static_cast<TokenId>(hash % static_cast<uint64_t>(vocab_size));
}

std::vector<TokenId> FakeModel::Golden(std::vector<TokenId> tokens, int64_t seed,
                                       int32_t max_tokens, int32_t min_tokens,
                                       const std::vector<TokenId>& stops) const {
  std::vector<TokenId> out;
  while (static_cast<int32_t>(out.size()) < max_tokens) {
    const TokenId next = Next(tokens, seed, static_cast<int32_t>(out.size()));
    tokens.push_back(next);
    out.push_back(next);
    if (static_cast<int32_t>(out.size()) > min_tokens &&
        std::find(stops.begin(), stops.end(), next) != stops.end()) {
      break;
    }
  }
  return out;
}

FakeStepWorkers::FakeStepWorkers(const Options& options)
    : options_(options), kv_pages_(options.kv_pages), random_(options.seed) {}

WorkerHello FakeStepWorkers::Hello(bool gpu) const {
  WorkerHello hello{.instance_id = absl::StrCat(gpu ? "gpu-" : "cpu-", starts_), .epochs = epochs_};
  if (gpu) {
    hello.kv_pages = kv_pages_;
    hello.kv_pages_most = options_.kv_pages_most;
    hello.page_size = options_.page_size;
    hello.max_rows = options_.max_rows;
    hello.context_length = options_.context_length;
    hello.peer_attached = cpu_up_;
  }
  return hello;
}

void FakeStepWorkers::StartGpu() {
  ++starts_;
  gpu_up_ = true;
  kv_demand_ = KvDemand();
  const int32_t pages = std::max(options_.kv_pages, options_.kv_pages_most);
  kv_.assign(static_cast<size_t>(pages) * static_cast<size_t>(options_.page_size), -1);
  events_->OnHello(WorkerKind::kGpu, Hello(true));
}

void FakeStepWorkers::StartCpu() {
  cpu_up_ = true;
  events_->OnHello(WorkerKind::kCpu, Hello(false));
  if (gpu_up_) events_->OnHello(WorkerKind::kGpu, Hello(true));
}

void FakeStepWorkers::KillGpu() {
  gpu_up_ = false;
  queue_.clear();
  running_.reset();
  sequences_.clear();
  gpu_results_.clear();
  events_->OnDisconnected(WorkerKind::kGpu, absl::UnavailableError("killed"));
}

void FakeStepWorkers::KillCpu() {
  cpu_up_ = false;
  cpu_results_.clear();
  cpu_steps_.clear();
  events_->OnDisconnected(WorkerKind::kCpu, absl::UnavailableError("killed"));
  if (gpu_up_) events_->OnHello(WorkerKind::kGpu, Hello(true));
}

void FakeStepWorkers::ReportDamage() {
  cpu_results_.push_back({.error_code = static_cast<int32_t>(absl::StatusCode::kDataLoss)});
}

void FakeStepWorkers::RefuseLastCpuStep() {
  cpu_results_.push_back({.step_id = last_cpu_step_.step_id,
                          .epoch = last_cpu_step_.epoch,
                          .error_code = static_cast<int32_t>(absl::StatusCode::kAborted)});
}

void FakeStepWorkers::SetKvPages(int32_t pages) {
  kv_pages_ = pages;
  if (gpu_up_) events_->OnHello(WorkerKind::kGpu, Hello(true));
}

void FakeStepWorkers::OnKvDemand(const KvDemand& demand) {
  if (options_.kv_pages_most == 0) Complain("asked a worker whose pages are fixed for some");
  if (demand.top < kv_pages_ || demand.wanted < 0) Complain("demand out of range");
  kv_demand_ = demand;
}

void FakeStepWorkers::SetEpochs(std::vector<int64_t> epochs) {
  epochs_ = std::move(epochs);
  if (gpu_up_) events_->OnHello(WorkerKind::kGpu, Hello(true));
  if (cpu_up_) events_->OnHello(WorkerKind::kCpu, Hello(false));
}

void FakeStepWorkers::OnSend(WorkerKind kind, const StepRequest& step) {
  if (kind == WorkerKind::kCpu) {
    if (!step.page_table.empty() || !step.sampling.empty()) Complain("cpu_worker got tables");
    last_cpu_step_ = step;
    if (std::find(epochs_.begin(), epochs_.end(), step.epoch) == epochs_.end()) {
      cpu_results_.push_back({.step_id = step.step_id,
                              .epoch = step.epoch,
                              .error_code = static_cast<int32_t>(absl::StatusCode::kAborted)});
      return;
    }
    for (int32_t i = 0; i <= step.grant; ++i) cpu_steps_.insert(step.step_id + i);
    return;
  }
  if (!gpu_up_) return Complain("step sent to a gpu_worker that is away");
  if (static_cast<int32_t>(step.rows.size()) > options_.max_rows) Complain("too many rows");
  for (const PageTableChange& change : step.page_table) {
    for (const int32_t page : change.append_pages) {
      if (page >= kv_pages_) Complain("took a page that is not lent");
    }
  }
  if (keep_sent_) sent_.push_back(step);
  queue_.push_back(step);
  if (queue_.size() > 2) Complain("more than two steps queued");
}

void FakeStepWorkers::OnAbort(WorkerKind kind) {
  if (kind != WorkerKind::kGpu) return;
  queue_.clear();
  running_.reset();
  aborted_ = true;
}

void FakeStepWorkers::Begin(const StepRequest& request) {
  for (const SequenceId id : request.release_sequences) {
    if (sequences_.erase(id) == 0 && !aborted_) {
      Complain(absl::StrCat("released unknown sequence ", id));
    }
  }
  for (const SequenceSampling& sampling : request.sampling) {
    if (sequences_.contains(sampling.sequence)) Complain("sequence introduced twice");
    sequences_[sampling.sequence].sampling = sampling;
  }
  std::set<int32_t> held;
  for (const PageTableChange& change : request.page_table) {
    Sequence& sequence = sequences_[change.sequence];
    sequence.pages.insert(sequence.pages.end(), change.append_pages.begin(),
                          change.append_pages.end());
  }
  for (const auto& [id, sequence] : sequences_) {
    for (const int32_t page : sequence.pages) {
      if (page < 0 || page >= std::max(options_.kv_pages, options_.kv_pages_most)) {
        Complain("page out of range");
      }
      // A sequence that has stopped may lose its pages before it is released.
      if (!held.insert(page).second) Complain("page held by two sequences");
    }
  }
}

RowResult FakeStepWorkers::RunRow(Sequence& sequence, SequenceId id, const StepRow& row) {
  ++rows_run_;
  const TokenId token = row.token.has_value() ? *row.token : sequence.last.value_or(-1);
  if (token < 0) Complain("no token was sampled yet");
  if (row.token.has_value() && row.position != sequence.len) Complain("position skipped");
  RowResult result{.sequence = id, .position = static_cast<int32_t>(sequence.len)};
  if (sequence.len >= options_.context_length) Complain("past the context");
  const auto slot = [&](int64_t position) -> TokenId& {
    const auto page = sequence.pages[static_cast<size_t>(position / options_.page_size)];
    return kv_[static_cast<size_t>(page * options_.page_size + position % options_.page_size)];
  };
  if (sequence.len / options_.page_size >= static_cast<int64_t>(sequence.pages.size())) {
    Complain("no page");
    result.status = RowStatus::kNoPage;
    return result;
  }
  slot(sequence.len) = token;
  // A resumed sequence's own tokens come past its prompt; they were drawn before.
  const auto prompt = static_cast<int64_t>(sequence.sampling.penalty_tokens.size());
  if (row.token.has_value() && sequence.len >= prompt) ++sequence.sampled;
  ++sequence.len;
  if (!row.sample) return result;
  std::vector<TokenId> seen;
  for (int64_t p = 0; p < sequence.len; ++p) seen.push_back(slot(p));
  result.token_id = model_.Next(seen, sequence.sampling.params.seed, sequence.sampled);
  sequence.last = result.token_id;
  ++sequence.sampled;
  const auto& stops = sequence.sampling.stop_token_ids;
  if (sequence.sampled > sequence.sampling.min_tokens &&
      std::find(stops.begin(), stops.end(), result.token_id) != stops.end()) {
    result.status = RowStatus::kStopped;
    sequence.stopped = true;
  }
  return result;
}

bool FakeStepWorkers::RunStep() {
  if (!gpu_up_) return false;
  StepResult result;
  bool has_rows = false;
  if (running_.has_value() && queue_.empty()) {
    ++granted_steps_run_;
    ++running_done_;
    result.step_id = running_->step_id + running_done_;
    result.epoch = running_->epoch;
    for (const StepRow& row : running_->rows) {
      if (!row.sample) continue;
      has_rows = true;
      result.rows.push_back(RunRow(sequences_.at(row.sequence), row.sequence,
                                   {.sequence = row.sequence, .sample = true}));
    }
  } else if (!queue_.empty()) {
    running_ = std::move(queue_.front());
    queue_.pop_front();
    running_done_ = 0;
    result.step_id = running_->step_id;
    result.epoch = running_->epoch;
    has_rows = !running_->rows.empty();
    const bool known = std::find(epochs_.begin(), epochs_.end(), running_->epoch) != epochs_.end();
    Begin(*running_);
    if (!known) fail_next_ = absl::StatusCode::kAborted;
    for (const StepRow& row : running_->rows) {
      const auto it = sequences_.find(row.sequence);
      if (it == sequences_.end()) {
        Complain("row of an unknown sequence");
        continue;
      }
      if (it->second.stopped && random_() % 2 == 0) continue;  // as a worker may
      const RowResult row_result = RunRow(it->second, row.sequence, row);
      if (row.sample) result.rows.push_back(row_result);
    }
  } else {
    return false;
  }
  ++steps_run_;
  for (const LayerRange& range : running_->layers) {
    for (int32_t layer = range.first; range.trace && layer < range.last; ++layer) {
      result.timings.push_back({.layer = layer,
                                .attention_us = 10,
                                .gpu_us = 4,
                                .cpu_us = 6,
                                .wait_us = 5,
                                .merge_us = 1,
                                .post_us = 2});
    }
  }
  bool stopped = false;
  for (const RowResult& row : result.rows) stopped |= row.status == RowStatus::kStopped;
  if (stopped || running_done_ == running_->grant || (!queue_.empty() && random_() % 2 == 0)) {
    result.grant_ended = stopped || random_() % 2 == 0 || running_done_ < running_->grant;
    running_.reset();
  }
  Finish(std::move(result), has_rows);
  return true;
}

void FakeStepWorkers::Finish(StepResult result, bool has_rows) {
  result.active_neurons = 10;
  result.hot_neurons = 4;
  if (fail_next_.has_value()) {
    result.error_code = static_cast<int32_t>(*fail_next_);
    result.rows.clear();
    fail_next_.reset();
    running_.reset();
  }
  const bool told = cpu_up_ && cpu_steps_.contains(result.step_id);
  const uint64_t cpu_work = told && has_rows ? random_() % 3 * random_() : 0;
  result.owed_hash = has_rows ? random_() : 0;
  result.work_hash = result.owed_hash - cpu_work;
  result.cpu_recomputed = !told;
  if (corrupt_next_ && !result.rows.empty()) {
    corrupt_next_ = false;
    result.work_hash += 1;
    result.rows[0].token_id = (result.rows[0].token_id + 1) % model_.vocab_size;
  }
  if (told && !std::exchange(lose_cpu_next_, false)) {
    cpu_results_.push_back(
        {.step_id = result.step_id, .epoch = result.epoch, .work_hash = cpu_work});
  }
  if (std::exchange(repeat_next_, false)) gpu_results_.push_back(result);
  gpu_results_.push_back(std::move(result));
}

bool FakeStepWorkers::DeliverGpu() {
  if (gpu_results_.empty()) return false;
  StepResult result = std::move(gpu_results_.front());
  gpu_results_.pop_front();
  events_->OnResult(WorkerKind::kGpu, std::move(result));
  return true;
}

bool FakeStepWorkers::DeliverCpu() {
  if (cpu_results_.empty()) return false;
  StepResult result = std::move(cpu_results_.front());
  cpu_results_.pop_front();
  events_->OnResult(WorkerKind::kCpu, std::move(result));
  return true;
}

void FakeStepWorkers::RunUntilIdle() {
  bool any = true;
  while (any) {
    any = RunStep();
    while (DeliverCpu()) any = true;
    while (DeliverGpu()) any = true;
  }
}

}  // namespace isotherm
