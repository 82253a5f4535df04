#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "placement_service/plan/plan_record.h"
#include "placement_service/plan/recomputation.h"

namespace isotherm {

// Something that happened: to a plan (with a notice about the live one, perhaps), to a
// recomputation, to the budget, or what operators should know at once.
struct PlanEvent {
  enum class Kind { kPlan, kRecomputation, kBudget, kAlarm };
  int64_t sequence = 0;  // grows, over restarts too
  Kind kind = Kind::kPlan;
  PlacementPlan plan;  // kPlan: without bitmaps
  PlanState state = PlanState::kLive;
  std::string message;  // of kPlan and kAlarm
  std::optional<RecomputationRecord> recomputation;
  std::optional<PlanRecord> budget;  // the plan made under it
};

// Events for watchers: a snapshot of the live plan first, then each event in order. A watcher that
// does not take them is cut off at a bound, so that it cannot make the service grow. Thread-safe.
class PlanFeed {
 public:
  static constexpr size_t kMaxQueued = 256;

  // One watcher. The feed and the reader of the stream share it.
  class Subscription {
   public:
    // The next event; nullopt: none now, and `deliver` is called with the next one.
    std::optional<PlanEvent> Take();
    // Fell behind: Take() gives no more, and nothing is delivered.
    bool overflowed() const;

   private:
    friend class PlanFeed;
    mutable absl::Mutex mu_;
    std::deque<PlanEvent> queue_ ABSL_GUARDED_BY(mu_);
    bool idle_ ABSL_GUARDED_BY(mu_) = false;
    bool overflowed_ ABSL_GUARDED_BY(mu_) = false;
    std::function<void(PlanEvent)> deliver_;  // set once, before it is shared
  };

  // `live`: of the first snapshot.
  PlanFeed(int64_t first_sequence, const PlacementPlan& live);

  void Publish(const PlacementPlan& plan, PlanState state, std::string message)
      ABSL_LOCKS_EXCLUDED(mu_);
  void PublishAlarm(std::string message) ABSL_LOCKS_EXCLUDED(mu_);
  void PublishRecomputation(RecomputationRecord recomputation) ABSL_LOCKS_EXCLUDED(mu_);
  void PublishBudget(PlanRecord plan) ABSL_LOCKS_EXCLUDED(mu_);

  // `deliver` is called only after Take() had nothing, once, then again only after the next such
  // Take(). It must not block or call the feed.
  std::shared_ptr<Subscription> Subscribe(std::function<void(PlanEvent)> deliver)
      ABSL_LOCKS_EXCLUDED(mu_);
  // No call of `deliver` is under way or follows.
  void Unsubscribe(const std::shared_ptr<Subscription>& subscription) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void Send(PlanEvent event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  absl::Mutex mu_;
  int64_t sequence_ ABSL_GUARDED_BY(mu_);
  PlanEvent snapshot_ ABSL_GUARDED_BY(mu_);
  std::vector<std::shared_ptr<Subscription>> subscriptions_ ABSL_GUARDED_BY(mu_);
};

}  // namespace isotherm
