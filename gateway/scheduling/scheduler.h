#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/base/clock.h"
#include "common/step/step.h"
#include "gateway/routing/epoch_selector.h"
#include "gateway/routing/placement_client.h"
#include "gateway/routing/worker_client.h"
#include "gateway/scheduling/page_pool.h"
#include "gateway/scheduling/request_sink.h"
#include "gateway/scheduling/scheduled_request.h"
#include "gateway/scheduling/step_ledger.h"

namespace isotherm {

struct SchedulerOptions {
  int32_t max_sequences = 4;  // that run at once
  int32_t max_queue = 256;    // requests that wait
  // 16 tokens, one page: a grant costs a sequence at most one page it does not need yet, and
  // joining requests end a grant at the next step anyway.
  int32_t max_grant = 16;
  // Steps of a grant left when the next request goes out; two cover a stream message's 100 us.
  int32_t grant_lead = 2;
  std::chrono::milliseconds step_timeout{60'000};
  std::chrono::milliseconds verify_timeout{1'000};
  std::chrono::milliseconds reader_timeout{30'000};
  // The gpu_worker says it has met the cpu_worker, but our own stream to that is down: steps are
  // held back so long for their hashes' sake, then run without the cpu_worker.
  std::chrono::milliseconds cpu_stream_grace{2'000};
  std::chrono::milliseconds retry_after{1'000};
  int32_t num_layers = 0;
  TokenId vocab_size = 0;  // 0: sampled ids are not checked
};

struct SchedulerState {
  bool gpu_attached = false;
  bool cpu_attached = false;  // its stream is up and the gpu_worker has met it
  bool draining = false;
  int32_t num_running = 0;
  int32_t num_waiting = 0;
  int64_t context_length = 0;
  int32_t pages_total = 0;
  int32_t pages_free = 0;
  int32_t pages_held = 0;
  int64_t preemptions = 0;
  int64_t step_failures = 0;
  int64_t hash_mismatches = 0;
  int64_t ignored_results = 0;
};

// Decides what both workers run: admission, batches, page numbers, prompt chunks, grants, epochs,
// and what happens when a step or a worker fails. Purely event-driven: every method runs to its end
// without blocking, on one thread (SchedulerThread, or a test), and may send steps and call sinks
// before it returns; sinks must not call back. Call Tick() no later than NextWakeup().
class Scheduler : public WorkerEvents, public PlacementEvents {
 public:
  Scheduler(const SchedulerOptions& options, WorkerClient& gpu, WorkerClient& cpu,
            const Clock& clock);

  // Known once the model's file was read: bounds of sampled ids, and the layers there are.
  void SetModelLimits(TokenId vocab_size, int32_t num_layers);

  // Refusals, too, come by sink->OnFinish, before this returns; then the result is 0. The sink
  // outlives its OnFinish.
  RequestHandle Submit(GenerationRequest request, RequestSink* sink);
  // Ends the request with `why`; nothing happens if it has ended already.
  void Cancel(RequestHandle handle, const absl::Status& why);
  // False: no such request.
  bool CancelById(absl::string_view request_id, const absl::Status& why);

  void OnHello(WorkerKind kind, WorkerHello hello) override;
  void OnResult(WorkerKind kind, StepResult result) override;
  void OnDisconnected(WorkerKind kind, absl::Status why) override;
  void OnLive(int64_t epoch) override;
  void OnRetired(int64_t epoch) override;

  // Deadlines, step and hash timeouts, readers that do not read.
  void Tick();
  std::optional<Clock::TimePoint> NextWakeup() const;

  // From now on Submit refuses; what was accepted goes on.
  void Drain();
  void CancelAll(const absl::Status& why);

  SchedulerState state() const;

 private:
  enum class FaultKind { kStep, kWrongHash, kEpoch, kHashLost, kDamagedWeights };
  using WaitingKey = std::tuple<int32_t, uint64_t, RequestHandle>;  // priority, arrival
  struct SequenceRef {
    ScheduledRequest* request = nullptr;
    int32_t choice = 0;
    Sequence& sequence() const { return request->sequences[static_cast<size_t>(choice)]; }
  };

  // scheduler.cc: life of a request
  absl::Status Resolve(const GenerationRequest& request, int32_t& max_tokens) const;
  void Finish(ScheduledRequest& request, const absl::Status& status);
  void EndChoice(ScheduledRequest& request, int32_t choice, FinishReason reason);
  // Frees pages and the worker's memory of it; a later incarnation is recomputed from its tokens.
  void Detach(Sequence& sequence);
  void Enqueue(ScheduledRequest& request);
  void Preempt(ScheduledRequest& request);

  // scheduler_steps.cc: what runs next
  void Pump();
  // What KV pages all of this takes, to a worker that can lend some.
  void TellKvDemand();
  bool WantsStep() const;
  bool HeldBack() const;
  bool SendStep();
  void AdmitWaiting();
  bool Fits(const ScheduledRequest& request) const;
  bool EnsurePages(Sequence& sequence, int64_t num_positions);
  // How many tokens of the sequence there are once all that was sent has run in full.
  int64_t PlannedTokens(const ScheduledRequest& request, const Sequence& sequence) const;
  bool NeedsDecodeRow(const ScheduledRequest& request, const Sequence& sequence) const;
  // As above, or the row is wanted in case that the running grant is cut short.
  bool WantsDecodeRow(const ScheduledRequest& request, const Sequence& sequence) const;
  void ReserveDecodePages();
  void AddDecodeRows(StepRequest& step, SentStep& sent);
  void AddPrefillRows(StepRequest& step, SentStep& sent);
  void AddRow(SequenceRef ref, int32_t num_tokens, StepRequest& step, SentStep& sent);
  void AddGrant(StepRequest& step, SentStep& sent);
  void AddTables(StepRequest& step, const SentStep& sent);
  void AddLayers(StepRequest& step, const SentStep& sent) const;

  // scheduler_results.cc: what came back
  void OnGpuResult(StepResult result);
  void OnCpuResult(const StepResult& result);
  void OnDamagedWeights();
  void ReleaseVerified();
  void Apply(ArrivedStep step);
  void ApplyRow(SequenceRef ref, const RowResult& row);
  void FailStep(FaultKind kind, const std::vector<SentRow>& blamed, const absl::Status& why);
  void RestartAfterFault(ScheduledRequest& request, FaultKind kind, bool blamed,
                         const absl::Status& why);
  void OnGpuLost(const absl::Status& why);
  void UpdateCpuAttached();

  std::optional<SequenceRef> FindWire(SequenceId wire_id) const;
  int32_t num_running_sequences() const;

  SchedulerOptions options_;
  WorkerClient& gpu_;
  WorkerClient& cpu_;
  const Clock& clock_;

  std::map<RequestHandle, std::unique_ptr<ScheduledRequest>> requests_;
  absl::flat_hash_map<std::string, RequestHandle> by_id_;
  std::set<WaitingKey> waiting_;
  std::vector<ScheduledRequest*> running_;  // by (priority, arrival): the last is preempted first
  absl::flat_hash_map<SequenceId, SequenceRef> by_wire_;
  std::vector<SequenceId> pending_releases_;
  PagePool pages_;
  KvDemand kv_demand_;  // told last
  StepLedger ledger_;
  EpochSelector epochs_;

  std::optional<WorkerHello> gpu_hello_;
  std::string last_gpu_instance_;
  bool cpu_stream_up_ = false;
  bool cpu_attached_ = false;
  // When the gpu_worker's and our own view of the cpu_worker began to differ.
  std::optional<Clock::TimePoint> cpu_stream_missing_since_;
  bool draining_ = false;
  // A sequence of a running grant has left, or the epoch changed: end the grant early.
  bool batch_changed_ = false;
  RequestHandle next_handle_ = 1;
  SequenceId next_wire_id_ = 1;
  uint64_t next_arrival_ = 1;
  int64_t preemptions_ = 0;
  int64_t step_failures_ = 0;
  int64_t hash_mismatches_ = 0;
};

}  // namespace isotherm
