#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "common/step/placement_plan.h"

namespace isotherm::cpu {

// Which neurons an epoch leaves to the cpu side. Immutable; a step keeps it alive while it runs.
struct EpochTable {
  int64_t epoch = 0;
  uint64_t checksum = 0;                    // PlanChecksum of the plan it was made from
  std::vector<std::vector<uint64_t>> cold;  // [num_layers][ceil(num_neurons / 64)]
};

// The epochs this worker knows, and their way from planned to committed to retired. The built-in
// epoch, no neuron hot, is always there. Thread-safe.
class EpochTables {
 public:
  struct Model {
    int64_t num_layers = 0;
    int64_t num_neurons = 0;
    std::string digest;
  };
  // More than a migration ever has at once; bounds what a peer can make us keep.
  static constexpr size_t kMaxEpochs = 8;

  explicit EpochTables(const Model& model);

  // Each operation carries the caller's term: Aborted when a higher one was seen. All may be
  // repeated without further effect.

  // Builds the epoch's tables; returns the checksum. FailedPrecondition for a plan of another
  // model, or when the epoch is known with other contents; Aborted when the epoch is older than the
  // committed one; ResourceExhausted past kMaxEpochs.
  absl::StatusOr<uint64_t> Plan(const PlacementPlan& plan, int64_t term);
  // From now on steps may name the epoch. FailedPrecondition unless it was planned.
  absl::Status Commit(int64_t epoch, int64_t term);
  // Forgets a planned epoch. FailedPrecondition when it is committed: retire it.
  absl::Status Abort(int64_t epoch, int64_t term);
  // Forgets a committed epoch; steps under way keep its table. InvalidArgument for the built-in
  // one.
  absl::Status Retire(int64_t epoch, int64_t term);

  // The table of a committed epoch; null when it is not known.
  std::shared_ptr<const EpochTable> Find(int64_t epoch) const;
  std::vector<int64_t> Committed() const;  // ascending
  int64_t NewestCommitted() const;

 private:
  struct Entry {
    std::shared_ptr<const EpochTable> table;  // shared with the steps that run under it
    bool committed = false;
  };
  absl::Status Fence(int64_t term) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CheckPlan(const PlacementPlan& plan) const;
  int64_t NewestCommittedLocked() const ABSL_SHARED_LOCKS_REQUIRED(mu_);

  const Model model_;
  mutable absl::Mutex mu_;
  int64_t term_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<int64_t, Entry> epochs_ ABSL_GUARDED_BY(mu_);
};

}  // namespace isotherm::cpu
