#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>

#include "absl/status/status.h"
#include "common/step/placement_plan.h"
#include "gpu_worker/engine/hot_pool.h"
#include "gpu_worker/engine/pool_memory.h"
#include "gpu_worker/engine/step_gate.h"

namespace isotherm::gpu {

// Keeps as much memory behind a HotPool as the budgets of the prepared plans ask for: taken before
// a larger plan is copied, given back once the larger plan is retired and what stays of it has
// moved to the low slots. Memory changes between two steps, and at most one step waits for it.
//
// A plan's budget is HotPool::BudgetSlots. Beside it the pool keeps a share of its slots free for
// neurons that move.
//
// Thread-safe: Prepare and Retire take turns. `pool`, `memory` and `gate` are the caller's and
// nobody else resizes, prepares or retires on them.
class HotPoolBudget {
 public:
  // Of the slots, kept free so that neurons can move while the live epoch keeps all of its own.
  static constexpr double kSpareShare = 0.015;
  // How many of `slots` a plan may fill.
  static int64_t Capacity(int64_t slots, int64_t all_neurons);

  // All of the pool's slots have memory.
  HotPoolBudget(HotPool& pool, PoolMemory& memory, StepGate& gate, int64_t bundle_bytes);

  // HotPool::Prepare. ResourceExhausted, with the memory and the epochs as they were, when the
  // plan's budget cannot be had. May wait for the running step.
  absl::Status Prepare(const PlacementPlan& plan, const HotPool::CopyBundle& copy,
                       const std::function<void(int64_t, int64_t)>& progress,
                       const HotPool::Publish& publish = {});
  // HotPool::Retire. May wait for the running step. An error other than those of HotPool::Retire
  // leaves the epoch retired and more memory taken than the budget asks for.
  absl::Status Retire(int64_t epoch, const HotPool::MoveBundle& move,
                      const HotPool::Publish& publish = {});

  int64_t memory_bytes() const { return memory_bytes_.load(); }

 private:
  // Of the budget `slots`, spare ones among them.
  int64_t SlotsFor(int64_t slots) const;
  // SlotsFor the largest budget of those prepared.
  int64_t Target() const { return SlotsFor(pool_.budget_slots()); }
  absl::Status Resize(int64_t slots);
  absl::Status GrowFor(const PlacementPlan& plan);
  absl::Status Shrink();

  HotPool& pool_;
  PoolMemory& memory_;
  StepGate& gate_;
  const int64_t bundle_bytes_;
  std::mutex mu_;
  std::atomic<int64_t> memory_bytes_;
};

}  // namespace isotherm::gpu
