#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "gateway/routing/worker_client.h"

namespace isotherm {

struct FakeModel {
  TokenId vocab_size = 500;
  // The token that follows `tokens` under `seed`, `num_sampled` of them drawn from the random
  // stream so far; a pure function.
  TokenId Next(const std::vector<TokenId>& tokens, int64_t seed, int32_t num_sampled) const;
  // Everything that a sequence generates.
  std::vector<TokenId> Golden(std::vector<TokenId> prompt, int64_t seed, int32_t max_tokens,
                              int32_t min_tokens, const std::vector<TokenId>& stop_tokens) const;
};

// Both workers of a cell, run by hand: RunStep() computes one step of what was sent, results lie
// ready until DeliverGpu() / DeliverCpu(). Tokens are computed from what really stands in the KV
// pages, so a page given to two sequences or a step out of order shows as a wrong token. What no
// worker would accept goes to `complaints`.
class FakeStepWorkers {
 public:
  struct Options {
    int32_t kv_pages = 64;
    int32_t kv_pages_most = 0;  // 0: kv_pages never changes
    int32_t page_size = 16;
    int32_t max_rows = 32;
    int64_t context_length = 512;
    bool cpu = true;
    uint64_t seed = 1;
  };
  explicit FakeStepWorkers(const Options& options);

  WorkerClient& gpu() { return gpu_client_; }
  WorkerClient& cpu() { return cpu_client_; }
  void Attach(WorkerEvents* events) { events_ = events; }

  // Streams come up (hello) or break. A restart forgets every sequence and page.
  void StartGpu();
  void StartCpu();
  void KillGpu();
  void KillCpu();
  bool gpu_up() const { return gpu_up_; }
  bool cpu_up() const { return cpu_up_; }
  // The gateway may name pages below `pages` from now on; a new hello says so.
  void SetKvPages(int32_t pages);
  const KvDemand& kv_demand() const { return kv_demand_; }
  void SetEpochs(std::vector<int64_t> epochs);  // on both, with new hellos

  bool RunStep();     // false: nothing to do
  bool DeliverGpu();  // one result
  bool DeliverCpu();
  void RunUntilIdle();

  // Of the next step that runs.
  void FailNextStep(absl::StatusCode code) { fail_next_ = code; }
  void CorruptNextStep() { corrupt_next_ = true; }
  void LoseNextCpuResult() { lose_cpu_next_ = true; }
  // The cpu_worker does not know the epoch of the step it was told of last.
  void RefuseLastCpuStep();
  // The cpu_worker found damage in its weights.
  void ReportDamage();
  void RepeatNextResult() { repeat_next_ = true; }

  const FakeModel& model() const { return model_; }
  const std::vector<std::string>& complaints() const { return complaints_; }
  int64_t steps_run() const { return steps_run_; }
  int64_t rows_run() const { return rows_run_; }
  int64_t granted_steps_run() const { return granted_steps_run_; }
  size_t known_sequences() const { return sequences_.size(); }
  const std::vector<StepRequest>& sent() const { return sent_; }
  void KeepSent() { keep_sent_ = true; }

 private:
  struct Client : WorkerClient {
    Client(FakeStepWorkers* o, WorkerKind k) : owner(o), kind(k) {}
    void SendStep(const StepRequest& step) override { owner->OnSend(kind, step); }
    void Abort() override { owner->OnAbort(kind); }
    void SendKvDemand(const KvDemand& demand) override { owner->OnKvDemand(demand); }
    FakeStepWorkers* owner;
    WorkerKind kind;
  };
  struct Sequence {
    std::vector<int32_t> pages;
    int64_t len = 0;
    std::optional<TokenId> last;
    SequenceSampling sampling;
    int32_t sampled = 0;
    bool stopped = false;
  };

  void OnSend(WorkerKind kind, const StepRequest& step);
  void OnAbort(WorkerKind kind);
  void OnKvDemand(const KvDemand& demand);
  void Begin(const StepRequest& request);
  RowResult RunRow(Sequence& sequence, SequenceId id, const StepRow& row);
  void Finish(StepResult result, bool has_rows);
  void Complain(std::string what) { complaints_.push_back(std::move(what)); }
  WorkerHello Hello(bool gpu) const;

  const Options options_;
  int32_t kv_pages_;
  KvDemand kv_demand_;
  FakeModel model_;
  std::mt19937_64 random_;
  WorkerEvents* events_ = nullptr;
  Client gpu_client_{this, WorkerKind::kGpu};
  Client cpu_client_{this, WorkerKind::kCpu};
  bool gpu_up_ = false, cpu_up_ = false;
  bool aborted_ = false;  // dropped requests: releases may be said twice
  int starts_ = 0;
  std::vector<int64_t> epochs_{0};
  std::deque<StepRequest> queue_;
  std::optional<StepRequest> running_;  // a grant with steps left
  int32_t running_done_ = 0;
  std::map<SequenceId, Sequence> sequences_;
  std::vector<TokenId> kv_;
  StepRequest last_cpu_step_;
  std::set<int64_t> cpu_steps_;  // step ids the cpu_worker was told of
  std::deque<StepResult> gpu_results_, cpu_results_;
  std::optional<absl::StatusCode> fail_next_;
  bool corrupt_next_ = false, lose_cpu_next_ = false, repeat_next_ = false, keep_sent_ = false;
  std::vector<std::string> complaints_;
  std::vector<StepRequest> sent_;
  int64_t steps_run_ = 0, rows_run_ = 0, granted_steps_run_ = 0;
};

}  // namespace isotherm
