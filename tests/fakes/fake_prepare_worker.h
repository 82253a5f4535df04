#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "placement_service/plan/worker_port.h"

namespace isotherm {

struct FakePrepareOptions {
  std::string name = "gpu_worker";
  std::string model_digest = "digest";
  int64_t num_layers = 2, num_neurons = 70, bundle_bytes = 10;
  int64_t capacity_bytes = 400;
  int64_t max_epochs = 3;  // the built-in one, the live one and one being prepared
  DeviceMemoryUse memory;
  // gpu_worker: its pool is so much larger than the largest budget of the plans that it holds, or
  // than the capacity while it holds none; -1: not told, and never too small.
  int64_t spare_bytes = -1;
};

// A worker's side of Describe and Prepare, in memory: epochs, terms, capacity. Thread-safe. It is a
// WorkerPort itself, for tests without sockets; FakePrepareServer puts it behind gRPC.
class FakePrepareWorker : public WorkerPort {
 public:
  // Called before a phase takes effect (`before`) and after; an error is answered instead, so an
  // error after means: done, but the answer was lost.
  using Hook = std::function<absl::Status(PreparePhase phase, int64_t epoch, bool before)>;

  explicit FakePrepareWorker(FakePrepareOptions options);

  absl::string_view name() const override { return options_.name; }
  absl::StatusOr<WorkerDescription> Describe() override;
  absl::StatusOr<uint64_t> Run(const PhaseRequest& request) override;
  void Cancel() override {}

  // Forgets all but the built-in epoch and takes a new instance id; terms, too.
  void Restart();
  void Restart(FakePrepareOptions options);
  void SetCapacity(int64_t bytes);
  void SetAway(bool away);
  void SetLoadProgress(double progress);
  void SetHook(Hook hook);
  void CorruptChecksums(int times);
  // A step names the epoch: RETIRE of it is not ready.
  void Pin(int64_t epoch, bool pinned);

  // Committed epochs, the built-in one among them, and what they hold.
  std::vector<int64_t> CommittedEpochs() const;
  std::vector<int64_t> Epochs() const;
  PlacementPlan PlanOf(int64_t epoch) const;
  int64_t term() const;

 private:
  struct Entry {
    PlacementPlan plan;
    bool committed = false;
  };
  int64_t ResidentBytes(const PlacementPlan* with) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  int64_t PoolBytes(const PlacementPlan* with) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<uint64_t> Apply(const PhaseRequest& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  FakePrepareOptions options_;
  mutable absl::Mutex mu_;
  std::map<int64_t, Entry> epochs_ ABSL_GUARDED_BY(mu_);
  std::map<int64_t, bool> pinned_ ABSL_GUARDED_BY(mu_);
  int instance_ ABSL_GUARDED_BY(mu_) = 1;
  int64_t term_ ABSL_GUARDED_BY(mu_) = 0;
  bool away_ ABSL_GUARDED_BY(mu_) = false;
  double load_progress_ ABSL_GUARDED_BY(mu_) = 1;
  int corrupt_ ABSL_GUARDED_BY(mu_) = 0;
  Hook hook_ ABSL_GUARDED_BY(mu_);
};

}  // namespace isotherm
