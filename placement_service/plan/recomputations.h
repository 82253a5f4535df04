#pragma once

#include <deque>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "placement_service/plan/plan_feed.h"
#include "placement_service/plan/plan_store.h"
#include "placement_service/plan/recomputation.h"

namespace isotherm {

// Recomputations by id: those that run, and those that ended, which the store keeps so that the
// same id gets the same answer after a restart. Each change goes to the feed. Thread-safe.
class Recomputations {
 public:
  // Both outlive it.
  Recomputations(PlanStore& store, PlanFeed& feed) : store_(store), feed_(feed) {}

  // nullopt: nobody asked with this id.
  absl::StatusOr<std::optional<RecomputationRecord>> Find(absl::string_view id);
  // The one that has not ended.
  std::optional<RecomputationRecord> Running() const;
  // False: another one runs, or the id is known.
  bool Start(const RecomputationRecord& record);
  // Changes what is known of the one that runs; nothing if it is another by now.
  void Update(const RecomputationRecord& record);
  void Progress(absl::string_view id, double progress);
  // An ended one is written to the store; if that fails it is kept in memory alone.
  void End(RecomputationRecord record);

 private:
  static constexpr size_t kRemembered = 64;

  PlanStore& store_;
  PlanFeed& feed_;
  mutable absl::Mutex mu_;
  std::optional<RecomputationRecord> running_ ABSL_GUARDED_BY(mu_);
  std::deque<RecomputationRecord> ended_ ABSL_GUARDED_BY(mu_);
};

}  // namespace isotherm
