#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/status.h"
#include "common/kernels/sparse_ffn.h"
#include "common/step/placement_plan.h"
#include "common/step/step.h"
#include "models/bundle_layout.h"
#include "models/matrix.h"

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
  std::vector<Layer> layers;
};

// Copies of hot neurons. A neuron that is hot in several epochs has one slot; a slot is freed with
// the last epoch that uses it. Thread-safe; tables that a step holds stay valid and their slots
// unwritten until it lets them go.
class HotPool {
 public:
  // Writes the bundle of (layer, neuron), bundle_bytes long.
  using CopyBundle = std::function<absl::Status(int64_t layer, int64_t neuron, std::byte* out)>;

  // `capacity_bytes` bounds one epoch; there is room for a second one beside it while neurons move.
  HotPool(const BundleLayout& layout, int64_t capacity_bytes);

  // ResourceExhausted when the pool's memory could not be had; checked once, after construction.
  absl::Status CheckStorage() const;

  // ResourceExhausted when the plan needs more than the capacity or the free slots,
  // FailedPrecondition when it is not for this model; nothing is kept then. `copy` is called layer
  // by layer, neurons ascending.
  absl::Status Prepare(const PlacementPlan& plan, const CopyBundle& copy,
                       const std::function<void(int64_t, int64_t)>& progress);
  absl::Status Retire(int64_t epoch);
  std::shared_ptr<const EpochTables> Find(int64_t epoch) const;

  int64_t capacity_bytes() const { return capacity_slots_ * layout_.bundle_bytes; }
  int64_t used_bytes() const;
  const std::byte* data() const { return storage_.data(); }

 private:
  struct Slot {
    int32_t slot = -1;
    int32_t users = 0;  // epochs
  };
  static std::shared_ptr<EpochTables> EmptyTables(const BundleLayout& layout, int64_t epoch);
  int64_t Key(int64_t layer, int64_t neuron) const { return layer * layout_.num_neurons + neuron; }
  void Release(const EpochTables& tables);
  void FreeUnpinned();

  const BundleLayout layout_;
  int64_t capacity_slots_ = 0;
  AlignedBytes storage_;
  std::mutex prepare_mu_;  // one Prepare or Retire at a time
  mutable std::mutex mu_;
  std::map<int64_t, std::shared_ptr<const EpochTables>> epochs_;
  std::vector<Slot> slots_;  // by Key()
  std::vector<int32_t> free_;
  // Retired tables that a step may still hold: their slots are freed when nobody does.
  std::vector<std::shared_ptr<const EpochTables>> retired_;
};

}  // namespace isotherm::gpu
