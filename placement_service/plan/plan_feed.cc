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

PlanFeed::PlanFeed(int64_t first_sequence, const PlacementPlan& live) : sequence_(first_sequence) {
  snapshot_.sequence = sequence_;
  snapshot_.plan = WithoutBitmaps(live);
}

void PlanFeed::Publish(const PlacementPlan& plan, PlanState state, std::string message) {
  PlanEvent event{.plan = WithoutBitmaps(plan), .state = state, .message = std::move(message)};
  absl::MutexLock lock(&mu_);
  if (state == PlanState::kLive) snapshot_ = event;
  Send(std::move(event));
}

void PlanFeed::PublishAlarm(std::string message) {
  absl::MutexLock lock(&mu_);
  Send({.kind = PlanEvent::Kind::kAlarm, .message = std::move(message)});
}

void PlanFeed::PublishRecomputation(RecomputationRecord recomputation) {
  for (LayerPlacement& layer : recomputation.proposal.layers) layer.hot.clear();
  absl::MutexLock lock(&mu_);
  Send({.kind = PlanEvent::Kind::kRecomputation, .recomputation = std::move(recomputation)});
}

void PlanFeed::PublishBudget(PlanRecord plan) {
  for (LayerPlacement& layer : plan.plan.layers) layer.hot.clear();
  absl::MutexLock lock(&mu_);
  Send({.kind = PlanEvent::Kind::kBudget, .budget = std::move(plan)});
}

void PlanFeed::Send(PlanEvent event) {
  event.sequence = ++sequence_;
  snapshot_.sequence = sequence_;
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
