#include "placement_service/plan/plan_feed.h"

#include <algorithm>
#include <utility>

namespace isotherm {
namespace {

PlacementPlan WithoutBitmaps(const PlacementPlan& plan) {
  PlacementPlan out = plan;
  for (LayerPlacement& layer : out.layers) layer.hot.clear();
  return out;
}

}  // namespace

std::optional<PlanEvent> PlanFeed::Subscription::Take() {
  absl::MutexLock lock(&mu_);
  if (queue_.empty()) {
    idle_ = !overflowed_;
    return std::nullopt;
  }
  PlanEvent event = std::move(queue_.front());
  queue_.pop_front();
  return event;
}

bool PlanFeed::Subscription::overflowed() const {
  absl::MutexLock lock(&mu_);
  return overflowed_;
}

PlanFeed::PlanFeed(int64_t first_sequence, PlacementPlan live) : sequence_(first_sequence) {
  snapshot_ = {sequence_, WithoutBitmaps(live), PlanState::kLive, ""};
}

void PlanFeed::Publish(const PlacementPlan& plan, PlanState state, std::string message) {
  absl::MutexLock lock(&mu_);
  const PlanEvent event{++sequence_, WithoutBitmaps(plan), state, std::move(message)};
  if (state == PlanState::kLive) {
    snapshot_ = event;
  } else {
    snapshot_.sequence = sequence_;
  }
  for (const std::shared_ptr<Subscription>& subscription : subscriptions_) {
    {
      absl::MutexLock subscription_lock(&subscription->mu_);
      if (subscription->overflowed_) continue;
      if (!subscription->idle_) {
        subscription->queue_.push_back(event);
        if (subscription->queue_.size() > kMaxQueued) {
          subscription->queue_.clear();
          subscription->overflowed_ = true;
        }
        continue;
      }
      subscription->idle_ = false;
    }
    subscription->deliver_(event);
  }
}

std::shared_ptr<PlanFeed::Subscription> PlanFeed::Subscribe(
    std::function<void(PlanEvent)> deliver) {
  auto subscription = std::make_shared<Subscription>();
  subscription->deliver_ = std::move(deliver);
  absl::MutexLock lock(&mu_);
  {
    absl::MutexLock subscription_lock(&subscription->mu_);
    subscription->queue_.push_back(snapshot_);
  }
  subscriptions_.push_back(subscription);
  return subscription;
}

void PlanFeed::Unsubscribe(const std::shared_ptr<Subscription>& subscription) {
  absl::MutexLock lock(&mu_);
  std::erase(subscriptions_, subscription);
}

}  // namespace isotherm
