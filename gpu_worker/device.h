#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/step/device_memory_use.h"
#include "common/step/placement_plan.h"
#include "common/step/step.h"
#include "common/telemetry/neuron_counters.h"
#include "gpu_worker/engine/cold_side.h"
#include "gpu_worker/engine/sampler.h"
#include "gpu_worker/kv_page.h"

namespace isotherm::gpu {

inline constexpr TokenId kSampledToken = -1;

// One token to compute.
struct DeviceRow {
  TokenId token = 0;  // kSampledToken, in a next batch alone: what the same row of this one samples
  int32_t position = 0;
  std::span<const int32_t> pages;     // of the row's sequence; covers `position`
  bool exact = false;                 // every neuron is active
  SamplingState* sampling = nullptr;  // not null: sample a token from this row's logits
};

struct DeviceBatch {
  int64_t step_id = 0;
  int64_t epoch = kBuiltInEpoch;
  int32_t attempt = 0;
  TimePoint deadline;
  // Modes of layers: kExact makes every neuron of every row active, kGpuOnly computes cold neurons
  // on this side from the arena; a later range overrides an earlier one, a layer in none is
  // kHybrid.
  std::span<const LayerRange> layers;
  std::span<const DeviceRow> rows;
  // What the next call will likely run, with the same cold side; null: not known. A device may
  // begin it before this step has ended, and drops it when something else comes.
  const DeviceBatch* next = nullptr;
};

struct DeviceSample {
  int64_t row = 0;  // index into the batch's rows
  TokenId token = -1;
  std::optional<TokenLogprobs> logprobs;
};

struct DeviceOutput {
  std::vector<DeviceSample> samples;  // of the rows that sample, in order
  uint64_t owed_hash = 0;
  uint64_t work_hash = 0;  // accumulated on this side
  int64_t active_neurons = 0;
  int64_t hot_neurons = 0;
  int64_t open_neurons = 0;  // of those computed on this side, (row, neuron) with an open gate
  bool cpu_recomputed = false;
  bool next_begun = false;           // the next batch is under way
  std::vector<LayerTiming> timings;  // of traced layers
};

struct DeviceInfo {
  std::string name;  // "cpu", or the GPU's name
  std::string isa;
  int threads = 0;
  int64_t hot_capacity_bytes = 0;
  int64_t hot_free_bytes = 0;
  int64_t hot_used_bytes = 0;  // by copies in any epoch; where memory is shared
  int64_t hot_spare_bytes =
      0;  // room for bundles that are resident in no epoch, beside those that are
  int32_t kv_pages = 0;
  int32_t max_rows = 0;
  bool shares_memory = false;    // SetShares() does something
  bool rings_by_itself = false;  // it cannot make a system call to wake the cpu side
  DeviceMemoryUse memory;
};

// What computes a step. The host backend implements it on CPU threads; a CUDA backend implements it
// with one captured graph per row bucket, which is why the unit is a step of a batch and not an
// operation.
//
// Threads: RunStep is called by one thread at a time and blocks until the step is done. Prepare and
// Retire may be called by another thread meanwhile; they never touch what a running step reads.
// Describe and Has: any thread, never block for long.
// Errors: a failed step leaves the KV of its rows undefined and everything else as it was.
class Device {
 public:
  virtual ~Device() = default;

  virtual DeviceInfo Describe() const = 0;

  // After an error that no later call recovers from: the process has to end.
  virtual bool Lost() const { return false; }

  // Copies the plan's hot bundles that are not resident into free slots, from `source` or, if that
  // is null, from the model file, and builds the epoch's tables. Steps may name the epoch as soon
  // as this returns. `progress`: bytes done, bytes in all; may be empty. Blocks for the copy.
  // Idempotent for an epoch that is prepared. ResourceExhausted, with nothing kept, when the plan
  // does not fit; FailedPrecondition when it is not for this model. `source` stays until the
  // return.
  virtual absl::Status Prepare(const PlacementPlan& plan, const NeuronStore* source,
                               const std::function<void(int64_t, int64_t)>& progress) = 0;

  // Forgets the epoch and frees the slots that only it held, once no running step reads them.
  // May wait for the running step to end where memory is given back, and never longer. NotFound for
  // an epoch that is not prepared.
  virtual absl::Status Retire(int64_t epoch) = 0;
  virtual bool Has(int64_t epoch) const = 0;

  // How KV pages and hot neurons share memory from now on: plans up to `hot_capacity_bytes` are
  // taken, and no step names a page from `kv_pages` on, so that what is behind those may be given
  // back. Called between steps. A device whose KV is fixed does nothing and says so in its info.
  virtual void SetShares(int64_t hot_capacity_bytes, int32_t kv_pages) {}

  // Makes the neurons and slots of a cold side reachable by the device where they lie. Called
  // before any step uses them; the handle is destroyed after the last such step and before they go.
  // Null where nothing is to be done. May block for as long as a step runs.
  virtual absl::StatusOr<std::shared_ptr<void>> Map(const ColdSide& cold) {
    return std::shared_ptr<void>();
  }

  // Runs the batch under its epoch, which stays valid until the return whatever Retire does.
  // Rows of one sequence come in ascending positions; their KV is written before any of them
  // attends. No two rows share a SamplingState.
  // Aborted: the epoch is not prepared here or at the cpu_worker. InvalidArgument: a row or range
  // is out of bounds; nothing ran. Unavailable: cold neurons are active and neither a cpu_worker
  // nor an arena is there. DeadlineExceeded: the cold side did not answer in time. DataLoss: the
  // logits are not numbers.
  // With next_begun the cold side stays until the next call of this or of Settle.
  virtual absl::Status RunStep(const DeviceBatch& batch, const ColdSide& cold,
                               DeviceOutput* output) = 0;

  // Waits for a next batch that was begun, and drops it. By the thread of RunStep.
  virtual void Settle() {}

  // Copies the totals; `counters` is the caller's to reuse, sized here. One thread at a time, about
  // once a second, while steps run: it neither waits for one nor slows it. Words of a running step
  // may be old or new, each for itself. A CUDA device copies its two arrays to pinned memory on a
  // stream of their own. Unimplemented: the device does not count, and placement stays as it is.
  virtual absl::Status ReadCounters(NeuronCounters* counters) {
    return absl::UnimplementedError("this device does not count neurons");
  }
};

}  // namespace isotherm::gpu
