// What the workers run next.
#include <algorithm>
#include <limits>
#include <utility>

#include "common/base/check.h"
#include "common/base/checked_math.h"
#include "gateway/request/derive_seed.h"
#include "gateway/scheduling/scheduler.h"

namespace isotherm {
namespace {

constexpr size_t kMaxInFlight = 2;
// Pages that a sequence is expected to need before more could be lent: a second or two of tokens.
constexpr int64_t kPagesAhead = 4;

}  // namespace

int64_t Scheduler::PlannedTokens(const ScheduledRequest& request, const Sequence& sequence) const {
  return sequence.planned_len - request.prompt_len() + 1;
}

bool Scheduler::NeedsDecodeRow(const ScheduledRequest& request, const Sequence& sequence) const {
  return sequence.on_worker() && !sequence.done && !sequence.in_prefill() &&
         PlannedTokens(request, sequence) < request.max_tokens;
}

bool Scheduler::WantsDecodeRow(const ScheduledRequest& request, const Sequence& sequence) const {
  if (NeedsDecodeRow(request, sequence)) return true;
  if (!sequence.on_worker() || sequence.done || sequence.in_prefill()) return false;
  // What is sent now cuts the grant that runs, so that its last tokens may not come.
  const bool cuts = !ledger_.in_flight().empty() && ledger_.in_flight().front().grant > 0 &&
                    ledger_.in_flight().front().steps_left() > 1;
  const int64_t arrived =
      std::max<int64_t>(sequence.generated, sequence.arrived_len - request.prompt_len() + 1);
  return cuts && arrived < request.max_tokens && sequence.planned_len < gpu_hello_->context_length;
}

bool Scheduler::HeldBack() const {
  return cpu_stream_missing_since_.has_value() &&
         clock_.Now() < *cpu_stream_missing_since_ + options_.cpu_stream_grace;
}

void Scheduler::Pump() {
  if (!gpu_hello_.has_value()) return;
  while (ledger_.in_flight().size() < kMaxInFlight && !HeldBack() && WantsStep()) {
    if (!SendStep()) break;
  }
  TellKvDemand();
}

void Scheduler::TellKvDemand() {
  if (gpu_hello_->kv_pages_most == 0) return;
  const int64_t page_size = gpu_hello_->page_size;
  int64_t wanted = 0;
  for (const ScheduledRequest* request : running_) {
    const int64_t most = CeilDiv(request->prompt_len() + request->max_tokens, page_size);
    for (const Sequence& sequence : request->sequences) {
      if (sequence.done) continue;
      const auto held = static_cast<int64_t>(sequence.pages.size());
      wanted += std::max(held, std::min(most, held + kPagesAhead));
    }
  }
  int32_t places = std::min(options_.max_sequences, gpu_hello_->max_rows) - num_running_sequences();
  for (const WaitingKey& key : waiting_) {
    const ScheduledRequest& request = *requests_.at(std::get<RequestHandle>(key));
    if (places < request.num_choices() && wanted > 0) break;
    places -= request.num_choices();
    for (const Sequence& sequence : request.sequences) {
      const auto tokens = static_cast<int64_t>(sequence.tokens.size());
      wanted += CeilDiv<int64_t>(tokens + 1, page_size) + 1;
    }
  }
  const KvDemand demand{.wanted = static_cast<int32_t>(std::min<int64_t>(wanted, pages_.most())),
                        .top = pages_.top()};
  if (demand == kv_demand_) return;
  kv_demand_ = demand;
  gpu_.SendKvDemand(demand);
}

bool Scheduler::Fits(const ScheduledRequest& request) const {
  int32_t sequences = 0;
  int64_t pages = 0;
  for (const Sequence& sequence : request.sequences) {
    if (sequence.done) continue;
    ++sequences;
    pages +=
        CeilDiv<int64_t>(static_cast<int64_t>(sequence.tokens.size()) + 1, gpu_hello_->page_size);
  }
  const int32_t running = num_running_sequences();
  const int32_t limit = std::min(options_.max_sequences, gpu_hello_->max_rows);
  // A request of more choices than run at once runs alone.
  if (running > 0 && running + sequences > limit) return false;
  // A page of slack for each that runs, or the newcomer would be preempted at once.
  return pages + running <= pages_.free();
}

void Scheduler::AdmitWaiting() {
  // Strictly in order: passing a request that does not fit would starve it.
  while (!waiting_.empty()) {
    ScheduledRequest& request = *requests_.at(std::get<RequestHandle>(*waiting_.begin()));
    if (!Fits(request)) return;
    waiting_.erase(waiting_.begin());
    request.running = true;
    if (!request.admitted.has_value()) request.admitted = clock_.Now();
    for (int32_t choice = 0; choice < request.num_choices(); ++choice) {
      Sequence& sequence = request.sequences[static_cast<size_t>(choice)];
      if (sequence.done) continue;
      sequence.wire_id = next_wire_id_++;
      sequence.feed_len = static_cast<int64_t>(sequence.tokens.size());
      by_wire_.emplace(sequence.wire_id, SequenceRef{&request, choice});
      ISOTHERM_CHECK(EnsurePages(sequence, sequence.feed_len + 1));
    }
    const auto key = [](const ScheduledRequest* r) {
      return std::pair(r->params.priority, r->arrival);
    };
    running_.insert(std::upper_bound(running_.begin(), running_.end(), &request,
                                     [&](const ScheduledRequest* a, const ScheduledRequest* b) {
                                       return key(a) < key(b);
                                     }),
                    &request);
  }
}

bool Scheduler::EnsurePages(Sequence& sequence, int64_t num_positions) {
  const int64_t wanted = CeilDiv<int64_t>(num_positions, gpu_hello_->page_size);
  const int64_t missing = wanted - static_cast<int64_t>(sequence.pages.size());
  if (missing <= 0) return true;
  if (missing > pages_.free()) return false;
  return pages_.Take(static_cast<int32_t>(missing), sequence.pages);
}

bool Scheduler::WantsStep() const {
  const bool joins =
      !waiting_.empty() && Fits(*requests_.at(std::get<RequestHandle>(*waiting_.begin())));
  bool has_rows = joins;
  for (const ScheduledRequest* request : running_) {
    for (const Sequence& sequence : request->sequences) {
      has_rows |=
          (sequence.on_worker() && sequence.in_prefill()) || NeedsDecodeRow(*request, sequence);
    }
  }
  if (ledger_.in_flight().empty()) return has_rows || !pending_releases_.empty();
  const SentStep& running = ledger_.in_flight().front();
  if (running.grant == 0) return has_rows;
  if (running.steps_left() > 1 && (joins || batch_changed_ || epochs_.Select() != running.epoch)) {
    return true;
  }
  return has_rows && running.steps_left() <= options_.grant_lead;
}

bool Scheduler::SendStep() {
  StepRequest step;
  SentStep sent;
  step.step_id = sent.step_id = ledger_.next_step_id();
  step.epoch = sent.epoch = epochs_.Select();
  sent.sent_at = clock_.Now();
  sent.to_cpu = cpu_stream_up_;
  AdmitWaiting();
  ReserveDecodePages();
  AddDecodeRows(step, sent);
  AddPrefillRows(step, sent);
  AddGrant(step, sent);
  AddTables(step, sent);
  step.release_sequences = sent.releases = std::exchange(pending_releases_, {});
  if (step.rows.empty() && step.release_sequences.empty() && !batch_changed_) return false;
  batch_changed_ = false;
  AddLayers(step, sent);
  ledger_.Add(std::move(sent));
  if (cpu_stream_up_) {
    StepRequest half = step;
    half.page_table.clear();
    half.sampling.clear();
    cpu_.SendStep(half);
  }
  gpu_.SendStep(step);
  return true;
}

void Scheduler::ReserveDecodePages() {
  for (size_t i = 0; i < running_.size(); ++i) {
    ScheduledRequest* const request = running_[i];
    for (Sequence& sequence : request->sequences) {
      if (!NeedsDecodeRow(*request, sequence)) continue;
      while (sequence.on_worker() && !EnsurePages(sequence, sequence.planned_len + 1)) {
        ++preemptions_;
        Preempt(*running_.back());
      }
    }
  }
}

void Scheduler::AddRow(SequenceRef ref, int32_t num_tokens, StepRequest& step, SentStep& sent) {
  Sequence& sequence = ref.sequence();
  const bool decode = !sequence.in_prefill();
  const bool sample = sequence.planned_len + num_tokens >= sequence.feed_len;
  for (int32_t i = 0; i < num_tokens; ++i) {
    StepRow row{.sequence = sequence.wire_id, .exact = ref.request->params.exact};
    if (!decode) {
      const int64_t position = sequence.planned_len + i;
      row.token = sequence.tokens[static_cast<size_t>(position)];
      row.position = static_cast<int32_t>(position);
    }
    row.sample = sample && i + 1 == num_tokens;
    step.rows.push_back(row);
  }
  sequence.planned_len += num_tokens;
  sent.rows.push_back({.wire_id = sequence.wire_id, .num_tokens = num_tokens, .sample = sample});
}

void Scheduler::AddDecodeRows(StepRequest& step, SentStep& sent) {
  for (ScheduledRequest* request : running_) {
    for (int32_t choice = 0; choice < request->num_choices(); ++choice) {
      Sequence& sequence = request->sequences[static_cast<size_t>(choice)];
      if (static_cast<int32_t>(step.rows.size()) < gpu_hello_->max_rows &&
          WantsDecodeRow(*request, sequence) && EnsurePages(sequence, sequence.planned_len + 1)) {
        AddRow({request, choice}, 1, step, sent);
      }
    }
  }
}

void Scheduler::AddPrefillRows(StepRequest& step, SentStep& sent) {
  std::vector<SequenceRef> prompts;
  for (ScheduledRequest* request : running_) {
    for (int32_t choice = 0; choice < request->num_choices(); ++choice) {
      const Sequence& sequence = request->sequences[static_cast<size_t>(choice)];
      if (sequence.on_worker() && sequence.in_prefill()) prompts.push_back({request, choice});
    }
  }
  const auto left = [](const SequenceRef& ref) {
    return ref.sequence().feed_len - ref.sequence().planned_len;
  };
  // Equal shares, and what short prompts leave goes to the long ones: a long prompt cannot hold up
  // the first token of a short one, and is never held up altogether.
  std::stable_sort(prompts.begin(), prompts.end(),
                   [&](const auto& a, const auto& b) { return left(a) < left(b); });
  for (size_t i = 0; i < prompts.size(); ++i) {
    const int64_t budget = gpu_hello_->max_rows - static_cast<int64_t>(step.rows.size());
    if (budget <= 0) break;
    const int64_t share = std::max<int64_t>(1, budget / static_cast<int64_t>(prompts.size() - i));
    AddRow(prompts[i], static_cast<int32_t>(std::min(left(prompts[i]), share)), step, sent);
  }
}

void Scheduler::AddGrant(StepRequest& step, SentStep& sent) {
  if (sent.rows.empty()) return;
  int64_t grant = options_.max_grant;
  for (const ScheduledRequest* request : running_) {
    for (const Sequence& sequence : request->sequences) {
      if (sequence.on_worker() && sequence.in_prefill()) return;
    }
  }
  for (const SentRow& row : sent.rows) {
    const SequenceRef ref = *FindWire(row.wire_id);
    grant = std::min({grant, ref.request->max_tokens - PlannedTokens(*ref.request, ref.sequence()),
                      gpu_hello_->context_length - ref.sequence().planned_len});
  }
  // A grant never preempts: it shrinks to the pages there are.
  const auto pages_for = [&](int64_t further) {
    int64_t pages = 0;
    for (const SentRow& row : sent.rows) {
      const Sequence& sequence = FindWire(row.wire_id)->sequence();
      pages += std::max<int64_t>(
          0, CeilDiv<int64_t>(sequence.planned_len + further, gpu_hello_->page_size) -
                 static_cast<int64_t>(sequence.pages.size()));
    }
    return pages;
  };
  while (grant > 0 && pages_for(grant) > pages_.free()) --grant;
  if (grant <= 0) return;
  step.grant = sent.grant = static_cast<int32_t>(grant);
  for (const SentRow& row : sent.rows) {
    Sequence& sequence = FindWire(row.wire_id)->sequence();
    ISOTHERM_CHECK(EnsurePages(sequence, sequence.planned_len + grant));
    sequence.planned_len += grant;
  }
}

void Scheduler::AddTables(StepRequest& step, const SentStep& sent) {
  for (const SentRow& row : sent.rows) {
    const SequenceRef ref = *FindWire(row.wire_id);
    Sequence& sequence = ref.sequence();
    if (sequence.pages_sent < sequence.pages.size()) {
      step.page_table.push_back(
          {.sequence = sequence.wire_id,
           .append_pages = {sequence.pages.begin() + static_cast<int64_t>(sequence.pages_sent),
                            sequence.pages.end()}});
      sequence.pages_sent = sequence.pages.size();
    }
    if (sequence.introduced) continue;
    sequence.introduced = true;
    const GenerationRequest& params = ref.request->params;
    // The whole prompt, so that the worker can tell a resumed sequence's own tokens from it: rows
    // with a token at positions past the prompt were sampled before. They count for the penalties,
    // min_tokens and the random stream as if it had sampled them just now.
    SequenceSampling sampling{.sequence = sequence.wire_id,
                              .params = params.sampling,
                              .stop_token_ids = params.stop_token_ids,
                              .top_logprobs = params.top_logprobs,
                              .penalty_tokens = params.prompt,
                              .min_tokens = params.min_tokens};
    sampling.params.seed = DeriveSeed(params.sampling.seed, ref.choice);
    step.sampling.push_back(std::move(sampling));
  }
}

void Scheduler::AddLayers(StepRequest& step, const SentStep& sent) const {
  if (options_.num_layers <= 0) return;
  const bool gpu_only = cpu_stream_missing_since_.has_value();
  const bool trace = std::any_of(sent.rows.begin(), sent.rows.end(), [this](const SentRow& row) {
    return FindWire(row.wire_id)->request->params.layer_timings;
  });
  if (!gpu_only && !trace) return;
  step.layers = {{.first = 0,
                  .last = options_.num_layers,
                  .mode = gpu_only ? LayerMode::kGpuOnly : LayerMode::kHybrid,
                  .trace = trace}};
}

}  // namespace isotherm
