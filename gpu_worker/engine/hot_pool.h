#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "common/step/placement_plan.h"
#include "common/step/step.h"
#include "models/bundle_layout.h"

namespace isotherm::gpu {

// Which neurons are hot in one epoch, and where their copies lie. Immutable once built.
struct EpochTables {
  struct Layer {
    std::vector<uint64_t> hot;     // [words]
    std::vector<uint64_t> cold;    // [words], the complement
    std::vector<int32_t> slot_of;  // [num_neurons], -1: cold
    int64_t num_hot = 0;
  };
  int64_t epoch = 0;
  int64_t budget_slots = 0;  // what the plan may take; no less than what it does
  std::vector<Layer> layers;
};

// Which slot of a backend's memory holds which hot neuron's copy. A neuron that is hot in several
// epochs has one slot; a slot is freed with the last epoch that uses it. Thread-safe; tables that a
// step holds stay valid and their slots unwritten until it lets them go.
class HotPool {
 public:
  // Copies the bundle of (layer, neuron) to the slot; may still be under way on return.
  using CopyBundle = std::function<absl::Status(int64_t layer, int64_t neuron, int32_t slot)>;
  // Whether the slot holds the bundle of (layer, neuron), after a copy that does not go on by
  // itself.
  using CheckBundle = std::function<bool(int64_t layer, int64_t neuron, int32_t slot)>;
  // Called once, after the copies and before a step can name the epoch: waits for the former and
  // makes what a backend needs of the tables.
  using Publish = std::function<absl::Status(const std::shared_ptr<const EpochTables>&)>;

  // `capacity_slots` bounds one epoch, `physical_slots` all that are prepared at one time: what is
  // above the capacity is room for moving. Both are cut to the number of neurons.
  HotPool(const BundleLayout& layout, int64_t capacity_slots, int64_t physical_slots);

  // ResourceExhausted when the plan needs more than the capacity or the free slots,
  // FailedPrecondition when it is not for this model; nothing is kept then. `copy` is called layer
  // by layer, neurons ascending.
  // Nothing is kept when `copy` or `publish` fails, either; DataLoss when `check` finds a bundle
  // that is not what it should be after kCopyAttempts copies.
  static constexpr int kCopyAttempts = 3;
  absl::Status Prepare(const PlacementPlan& plan, const CopyBundle& copy,
                       const std::function<void(int64_t, int64_t)>& progress,
                       const Publish& publish = {}, const CheckBundle& check = {});
  absl::Status Retire(int64_t epoch);

  // Moves bundles from high slots to free low ones, so that the memory behind the slots in use can
  // be given back. `move` copies a bundle from a slot to another one; the tables of the epoch are
  // made anew, a step under way goes on with the old ones. Nothing happens when two epochs are
  // alive or little is to be gained. On an error nothing has changed.
  // With `limit` only bundles from that slot on move, however few they are.
  using MoveBundle = std::function<absl::Status(int32_t from, int32_t to)>;
  absl::Status Compact(const MoveBundle& move, const Publish& publish = {},
                       std::optional<int64_t> limit = std::nullopt);
  // Calls `trim` with the number of slots up to the last one in use; until it returns no slot is
  // taken. Never waits: false, and no call, while a Prepare, Retire or Compact is under way; false,
  // too, when a step still holds retired tables, so that more can be trimmed later.
  bool Trim(const std::function<void(int64_t slots)>& trim);
  // For memory that is not there by itself: calls `resize` with `slots`, or with the slots up to
  // the last one in use if those are more. What it returns is how many slots, from the first on,
  // have memory from now on; no others are taken. No Prepare, Retire or Compact runs meanwhile, and
  // the caller sees to it that no step does.
  void Resize(int64_t slots, const std::function<int64_t(int64_t slots)>& resize);
  // Frees what retired tables alone held, but for tables that a step still holds: false then.
  bool FreeRetired();
  // Called for every slot that is freed, under a lock: tests overwrite what nobody may read.
  void SetOnFreed(std::function<void(int32_t slot)> on_freed) { on_freed_ = std::move(on_freed); }

  std::shared_ptr<const EpochTables> Find(int64_t epoch) const;

  int64_t capacity_slots() const { return capacity_slots_.load(); }
  int64_t capacity_bytes() const { return capacity_slots() * layout_.bundle_bytes; }
  // Of plans prepared from now on; cut to what physical slots there are. Those that are prepared
  // stay.
  void SetCapacity(int64_t slots);
  // What a plan may take, as far as the capacity allows: its budget, its hot neurons if those are
  // more, and all there is if it has some and names no budget.
  int64_t BudgetSlots(const PlacementPlan& plan) const;
  // The largest of those that are prepared; the capacity while there is none but the built-in.
  int64_t budget_slots() const;
  int64_t used_bytes() const;
  int64_t spare_bytes() const;  // of slots with memory
  int64_t physical_slots() const { return physical_slots_; }
  // Up to the end of the last slot in use.
  int64_t extent_bytes() const;

 private:
  static std::shared_ptr<EpochTables> EmptyTables(const BundleLayout& layout, int64_t epoch);
  int64_t Key(int64_t layer, int64_t neuron) const { return layer * layout_.num_neurons + neuron; }
  int32_t Take(int64_t key);
  void Release(const EpochTables& tables);
  void FreeUnpinned();
  int64_t UsedSlots() const { return physical_slots_ - static_cast<int64_t>(free_.size()); }
  int64_t SlotsUpToLast() const;

  const BundleLayout layout_;
  std::atomic<int64_t> capacity_slots_;
  const int64_t physical_slots_;
  int64_t backed_slots_;  // have memory; the others are all free
  std::function<void(int32_t)> on_freed_;
  std::mutex prepare_mu_;  // one Prepare, Retire, Compact, Trim or Resize at a time
  mutable std::mutex mu_;
  std::map<int64_t, std::shared_ptr<const EpochTables>> epochs_;
  std::vector<int32_t> slot_of_;  // by Key(): where the next epoch finds the neuron; -1: nowhere
  std::vector<int32_t> users_;    // by slot: epochs' tables that name it
  std::vector<int32_t> free_;     // a heap, the lowest first
  // Retired tables that a step may still hold: their slots are freed when nobody does.
  std::vector<std::shared_ptr<const EpochTables>> retired_;
};

}  // namespace isotherm::gpu
