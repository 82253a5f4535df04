#include "gpu_worker/engine/hot_pool_budget.h"

#include <algorithm>
#include <cmath>

#include "common/base/status_macros.h"

namespace isotherm::gpu {

int64_t HotPoolBudget::Capacity(int64_t slots, int64_t all_neurons) {
  if (slots >= all_neurons) return all_neurons;  // nothing is left to move in
  return slots - static_cast<int64_t>(kSpareShare * static_cast<double>(slots));
}

HotPoolBudget::HotPoolBudget(HotPool& pool, PoolMemory& memory, StepGate& gate,
                             int64_t bundle_bytes)
    : pool_(pool),
      memory_(memory),
      gate_(gate),
      bundle_bytes_(bundle_bytes),
      memory_bytes_(memory.bytes()) {}

int64_t HotPoolBudget::SlotsFor(int64_t slots) const {
  if (slots >= pool_.capacity_slots()) return pool_.physical_slots();
  const auto with_spare =
      static_cast<int64_t>(std::ceil(static_cast<double>(slots) / (1 - kSpareShare)));
  return std::min(pool_.physical_slots(), with_spare);
}

// Between two steps, when none holds tables any more; the slots in use stay in any case.
absl::Status HotPoolBudget::Resize(int64_t slots) {
  absl::Status status;
  gate_.Between([&] {
    pool_.Resize(slots, [&](int64_t least) {
      status = memory_.Resize(least * bundle_bytes_);
      memory_bytes_ = memory_.bytes();
      return memory_.bytes() / bundle_bytes_;
    });
  });
  return status;
}

absl::Status HotPoolBudget::GrowFor(const PlacementPlan& plan) {
  const int64_t slots = SlotsFor(pool_.BudgetSlots(plan));
  if (memory_.SizeAfter(slots * bundle_bytes_) <= memory_.bytes()) return absl::OkStatus();
  return Resize(slots);
}

absl::Status HotPoolBudget::Shrink() {
  const int64_t slots = Target();
  if (memory_.SizeAfter(slots * bundle_bytes_) >= memory_.bytes()) return absl::OkStatus();
  return Resize(slots);
}

absl::Status HotPoolBudget::Prepare(const PlacementPlan& plan, const HotPool::CopyBundle& copy,
                                    const std::function<void(int64_t, int64_t)>& progress,
                                    const HotPool::Publish& publish) {
  std::lock_guard lock(mu_);
  absl::Status status;
  if (pool_.Find(plan.epoch) == nullptr) status = GrowFor(plan);
  if (status.ok()) status = pool_.Prepare(plan, copy, progress, publish);
  // A plan that was refused leaves nothing behind, and the first one may be below what there is. An
  // error here is none of the plan's; the next Retire meets it again.
  Shrink().IgnoreError();
  return status;
}

absl::Status HotPoolBudget::Retire(int64_t epoch, const HotPool::MoveBundle& move,
                                   const HotPool::Publish& publish) {
  std::lock_guard lock(mu_);
  ISOTHERM_RETURN_IF_ERROR(pool_.Retire(epoch));
  // Nothing moves while a step holds tables of before.
  if (!pool_.FreeRetired()) gate_.Between([this] { pool_.FreeRetired(); });
  ISOTHERM_RETURN_IF_ERROR(pool_.Compact(move, publish, Target()));
  return Shrink();
}

}  // namespace isotherm::gpu
