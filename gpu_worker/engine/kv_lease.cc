#include "gpu_worker/engine/kv_lease.h"

#include <algorithm>

#include "common/base/checked_math.h"

namespace isotherm::gpu {
namespace {

int32_t MostPages(const KvLeaseOptions& options) {
  const int64_t affordable =
      (options.budget_bytes - options.hot_floor_bytes) / std::max<int64_t>(1, options.page_bytes);
  return static_cast<int32_t>(
      std::clamp<int64_t>(affordable, options.floor_pages, options.most_pages));
}

}  // namespace

KvLease::KvLease(const KvLeaseOptions& options)
    : options_(options),
      most_(MostPages(options)),
      goal_(options.floor_pages),
      pages_(options.floor_pages) {}

void KvLease::OnDemand(int32_t wanted, int32_t top) {
  wanted_ = wanted;
  top_ = std::clamp(top, 0, most_);
}

int32_t KvLease::Target() const {
  const int32_t above = std::max(0, std::min(wanted_, most_) - options_.floor_pages);
  return std::min(most_, options_.floor_pages + RoundUp<int32_t>(above, options_.chunk_pages));
}

int32_t KvLease::pages_taken() const { return std::max(pages_, top_); }

int64_t KvLease::hot_capacity_bytes() const {
  return options_.budget_bytes - std::max(goal_, pages_taken()) * options_.page_bytes;
}

void KvLease::Update(int64_t hot_used_bytes, Clock::TimePoint now) {
  const int32_t target = Target();
  if (target >= goal_) {
    goal_ = target;
    less_since_.reset();
  } else {
    if (!less_since_.has_value()) {
      less_since_ = now;
      most_since_ = 0;
    }
    most_since_ = std::max(most_since_, target);
    if (now - *less_since_ >= options_.hold) {
      goal_ = most_since_;
      less_since_.reset();
    }
  }
  if (goal_ <= pages_) {
    // Until the gateway says that it knows, it may name those that it had.
    if (goal_ < pages_) top_ = std::max(top_, pages_);
    pages_ = goal_;
  } else {
    const int64_t left = (options_.budget_bytes - hot_used_bytes) / options_.page_bytes;
    pages_ = static_cast<int32_t>(std::max<int64_t>(pages_, std::min<int64_t>(goal_, left)));
  }
}

}  // namespace isotherm::gpu
