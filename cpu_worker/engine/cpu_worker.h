#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/telemetry/neuron_counters.h"
#include "cpu_worker/engine/arena.h"
#include "cpu_worker/engine/attachment_host.h"
#include "cpu_worker/engine/bundle_source.h"
#include "cpu_worker/engine/cold_engine.h"
#include "cpu_worker/engine/epoch_tables.h"
#include "cpu_worker/engine/scrubber.h"
#include "cpu_worker/engine/step_ledger.h"
#include "cpu_worker/engine/worker_events.h"

namespace isotherm::cpu {

// All of the worker but its gRPC face. The parts that need the model exist once Load() returned;
// the rest is there from the start. Thread-safe but for Load and the destructor.
class CpuWorker {
 public:
  struct Options {
    std::string socket_dir;
    ArenaKind arena = ArenaKind::kAuto;
    int num_threads = 0;            // 0: DefaultThreadCount()
    std::vector<int> compute_cpus;  // compute thread i is bound to the i-th; empty: to none
    int32_t max_rows = 256;
    shm::WaitOptions wait;
    shm::PeerWatchOptions watch;
    int64_t scrub_bytes_per_second = 0;  // 0: the arena is not looked through for damage
    Scrubber::OnBeyondRepair on_beyond_repair;
  };
  // What needs the model.
  struct Parts {
    BundleSource source;
    std::unique_ptr<Arena> arena;
    std::unique_ptr<EpochTables> epochs;
    std::unique_ptr<ColdEngine> engine;
    std::unique_ptr<Scrubber> scrubber;
    std::unique_ptr<AttachmentHost> attachments;  // last: its thread uses the others
  };
  // For Describe.
  struct Description {
    std::string instance_id;
    std::string model_digest;
    std::string isa;
    double load_progress = 0;
    uint64_t layout_hash = 0;
    int64_t arena_bytes = 0;
    int64_t huge_page_bytes = 0;  // of those, in 2 MiB pages
    int64_t num_layers = 0, num_neurons = 0, bundle_bytes = 0;
    int32_t bundle_rows = 0;
    int32_t threads = 0;
    int32_t numa_node = 0;
    std::vector<int64_t> epochs;
    int64_t committed_epoch = 0;
  };

  explicit CpuWorker(const Options& options);
  ~CpuWorker();

  // Fills the arena and starts serving attachments. `progress` as in Arena::LoadOptions, called
  // by several threads, one at a time. Once.
  absl::Status Load(const BundleSource& source, const std::string& model_digest,
                    const std::function<bool(double)>& progress);

  // Unavailable with reason MODEL_LOADING before Load() is done. The parts live as long as this.
  absl::StatusOr<Parts*> parts();

  Description Describe() const;
  // What was computed since the start; any thread.
  absl::Status ReadCounters(NeuronCounters* counters);
  WorkerHello Hello() const;
  StepLedger& ledger() { return ledger_; }
  WorkerEvents& events() { return events_; }
  const std::string& instance_id() const { return instance_id_; }

 private:
  const Options options_;
  const std::string instance_id_;
  StepLedger ledger_;
  WorkerEvents events_;
  std::atomic<double> load_progress_{0};
  std::string model_digest_;
  Parts parts_;  // with the digest, published by ready_
  std::atomic<bool> ready_{false};
};

}  // namespace isotherm::cpu
