#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/step/sampling_params.h"

namespace isotherm {

// The epoch that every worker knows from its start: no neuron is hot.
inline constexpr int64_t kBuiltInEpoch = 0;

struct SequenceSampling {
  SequenceId sequence = 0;
  SamplingParams params;
  std::vector<TokenId> stop_token_ids;  // sampling one ends the sequence and the grant
  int32_t top_logprobs = -1;            // -1: none
  std::vector<TokenId> penalty_tokens;  // the prompt, for repetition_penalty
  int32_t min_tokens = 0;               // stop tokens are masked until so many were sampled
};

// One token of one sequence.
struct StepRow {
  SequenceId sequence = 0;
  std::optional<TokenId> token;  // absent: the one sampled last, at the sequence's next position
  int32_t position = 0;          // only with token
  bool exact = false;            // every neuron is active
  bool sample = false;           // logits are wanted
};

struct PageTableChange {
  SequenceId sequence = 0;
  std::vector<int32_t> append_pages;
};

enum class LayerMode { kHybrid, kExact, kGpuOnly };

struct LayerRange {
  int32_t first = 0;
  int32_t last = 0;  // exclusive
  LayerMode mode = LayerMode::kHybrid;
  bool trace = false;
};

// Work of one step, and of up to `grant` decode steps that follow on the worker's own account.
struct StepRequest {
  int64_t step_id = 0;  // step_id .. step_id + grant belong to this request
  int64_t epoch = kBuiltInEpoch;
  int64_t deadline_us = 0;  // time left for each step; 0: the worker's default
  std::vector<StepRow> rows;
  std::vector<PageTableChange> page_table;
  std::vector<LayerRange> layers;  // empty: all, hybrid, no trace
  std::vector<SequenceSampling> sampling;
  int32_t grant = 0;
  std::vector<SequenceId> release_sequences;  // forgotten before the step
};

struct TokenLogprob {
  TokenId token_id = -1;
  float logprob = 0;
};

struct TokenLogprobs {
  TokenLogprob sampled;
  std::vector<TokenLogprob> top;
};

enum class RowStatus { kOk, kStopped, kNoPage };

struct RowResult {
  SequenceId sequence = 0;
  int32_t position = 0;   // of the row computed
  TokenId token_id = -1;  // sampled
  std::optional<TokenLogprobs> logprobs;
  RowStatus status = RowStatus::kOk;
};

struct LayerTiming {
  int32_t layer = 0;
  float attention_us = 0, predict_us = 0, gpu_us = 0, cpu_us = 0, wait_us = 0, merge_us = 0;
  float streamed_us = 0;       // reading cold neurons over PCIe, beside gpu_us and cpu_us
  int32_t active_neurons = 0;  // of all rows' union
  int32_t hot_neurons = 0;     // of those, computed on the gpu side
  float post_us = 0;           // handing the layer's inputs to the cpu_worker
};

struct StepResult {
  int64_t step_id = 0;
  int64_t epoch = kBuiltInEpoch;
  std::vector<RowResult> rows;  // rows that sampled, in request order
  uint64_t work_hash = 0;       // of neurons accumulated on this side
  uint64_t owed_hash = 0;       // gpu_worker: of the whole active set, taken before the split
  std::vector<LayerTiming> timings;
  int64_t active_neurons = 0;  // summed over rows and layers
  int64_t hot_neurons = 0;
  float step_us = 0;
  bool grant_ended = false;  // no further step of the request follows
  int32_t error_code = 0;    // absl::StatusCode; not 0: the step failed, its rows are void
  std::string error_message;
  int32_t attempt = 0;
  bool cpu_recomputed = false;
};

// How many KV pages would serve what runs and waits; no later step names one from `top` on, unless
// a later hello allows it.
struct KvDemand {
  int32_t wanted = 0;
  int32_t top = 0;
  bool operator==(const KvDemand&) const = default;
};

struct WorkerHello {
  std::string instance_id;
  std::vector<int64_t> epochs;  // committed and usable, kBuiltInEpoch among them
  int32_t kv_pages = 0;
  int32_t page_size = 0;
  int32_t max_rows = 0;
  int64_t context_length = 0;
  bool peer_attached = false;
  std::string model_digest;
  int32_t kv_pages_most = 0;  // that KvDemand can ask for; 0: kv_pages never changes
};

}  // namespace isotherm
