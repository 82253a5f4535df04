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

namespace isotherm {

// Something that happened to a plan, or a notice about the live one.
struct PlanEvent {
  int64_t sequence = 0;  // grows, over restarts too
  PlacementPlan plan;    // without bitmaps
  PlanState state = PlanState::kLive;
  std::string message;
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
  PlanFeed(int64_t first_sequence, PlacementPlan live);

  void Publish(const PlacementPlan& plan, PlanState state, std::string message)
      ABSL_LOCKS_EXCLUDED(mu_);

  // `deliver` is called only after Take() had nothing, once, then again only after the next such
  // Take(). It must not block or call the feed.
  std::shared_ptr<Subscription> Subscribe(std::function<void(PlanEvent)> deliver)
      ABSL_LOCKS_EXCLUDED(mu_);
  // No call of `deliver` is under way or follows.
  void Unsubscribe(const std::shared_ptr<Subscription>& subscription) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  absl::Mutex mu_;
  int64_t sequence_ ABSL_GUARDED_BY(mu_);
  PlanEvent snapshot_ ABSL_GUARDED_BY(mu_);
  std::vector<std::shared_ptr<Subscription>> subscriptions_ ABSL_GUARDED_BY(mu_);
};

}  // namespace isotherm
