#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/kernels/sparse_ffn.h"
#include "common/shm/slot_messages.h"
#include "common/telemetry/counter_table.h"
#include "common/threading/thread_pool.h"
#include "cpu_worker/engine/arena.h"
#include "cpu_worker/engine/epoch_tables.h"
#include "cpu_worker/engine/step_ledger.h"
#include "cpu_worker/engine/worker_events.h"

namespace isotherm::cpu {

// One layer of cold work, whatever brought it. header's numbers are within the model's shape.
struct ColdLayerTask {
  shm::ColdLayerHeader header;
  uint64_t nonce = 0;                 // that the work hash is keyed with
  const uint16_t* z = nullptr;        // [num_rows, model_dim], BF16 if the weights are, else F16
  const uint64_t* active = nullptr;   // [num_rows, ceil(num_neurons / 64)], no bit past the end
  const int32_t* row_keys = nullptr;  // [num_rows]
  float* partial = nullptr;           // [num_rows, model_dim], overwritten

  // Of a post of layer slots, whose buffers it uses.
  static ColdLayerTask Of(const shm::ColdLayerWork& work, uint64_t nonce) {
    return {.header = work.header,
            .nonce = nonce,
            .z = work.z,
            .active = work.active,
            .row_keys = work.row_keys,
            .partial = work.partial};
  }
};

// Computes the neurons that an epoch leaves to this side and keeps each step's account.
// Thread-safe: one task at a time, others wait.
class ColdEngine {
 public:
  struct Options {
    int num_threads = 0;    // 0: DefaultThreadCount()
    std::vector<int> cpus;  // ThreadPoolOptions::cpus
    int32_t max_rows = 256;
    NeuronRule rule;
  };
  // All but `options` outlive the engine.
  static absl::StatusOr<std::unique_ptr<ColdEngine>> Create(const Arena& arena,
                                                            const EpochTables& epochs,
                                                            StepLedger& ledger,
                                                            WorkerEvents& events,
                                                            const Options& options);

  // partial = the sum over active & cold(epoch) & id < cut. kCancelled when the deadline has
  // passed, kStaleEpoch for an epoch that is not committed here, kPoison when the kernel refuses
  // the task; partial is then unspecified. `done` gets the outcome on this thread as soon as it is
  // final, which is before the last compute threads have left.
  shm::ColdLayerOutcome Compute(
      const ColdLayerTask& task,
      absl::FunctionRef<void(const shm::ColdLayerOutcome&)> done = [](const auto&) {});

  // The gpu side ended the step: tells the gateway's streams its total.
  void EndStep(const shm::ColdLayerHeader& header);
  // The gpu side is gone: the step under way is void.
  void DropStep();

  // Binds the calling thread, which is to call Compute from now on, to a CPU of its own.
  void BindCaller() const { pool_.BindCaller(); }
  // How long compute threads wait for the next layer before they sleep; nothing: as at the start.
  void SetSpin(std::optional<std::chrono::nanoseconds> spin) {
    pool_.SetSpin(spin.value_or(default_spin_));
  }

  std::chrono::nanoseconds spin() const { return pool_.spin(); }
  // What was computed so far; any thread, without waiting for a task.
  void ReadCounters(NeuronCounters* counters) const { counters_.Read(counters); }

  int num_threads() const { return pool_.num_threads(); }
  int32_t max_rows() const { return options_.max_rows; }
  const shm::ArenaShape& shape() const { return arena_.geometry().shape; }

 private:
  ColdEngine(const Arena& arena, const EpochTables& epochs, StepLedger& ledger,
             WorkerEvents& events, const Options& options);

  const Arena& arena_;
  const EpochTables& epochs_;
  StepLedger& ledger_;
  WorkerEvents& events_;
  const Options options_;
  absl::Mutex mu_;  // held while computing: one caller per pool and workspace
  ThreadPool pool_;
  const std::chrono::nanoseconds default_spin_ = pool_.spin();
  std::unique_ptr<SparseFfnWorkspace> workspace_ ABSL_GUARDED_BY(mu_);
  std::vector<uint64_t> step_keys_ ABSL_GUARDED_BY(mu_);  // [max_rows]
  CounterTable counters_;                                 // counted by the task under way
};

}  // namespace isotherm::cpu
