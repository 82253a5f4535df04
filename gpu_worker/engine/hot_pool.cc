#include "gpu_worker/engine/hot_pool.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"

namespace isotherm::gpu {

HotPool::HotPool(const BundleLayout& layout, int64_t capacity_slots, int64_t physical_slots)
    : layout_(layout),
      capacity_slots_(
          std::clamp<int64_t>(capacity_slots, 0, layout.num_neurons * layout.num_layers)),
      physical_slots_(std::clamp<int64_t>(physical_slots, capacity_slots_.load(),
                                          layout.num_neurons * layout.num_layers)),
      backed_slots_(physical_slots_) {
  slot_of_.assign(static_cast<size_t>(layout.num_neurons * layout.num_layers), -1);
  users_.assign(static_cast<size_t>(physical_slots_), 0);
  free_.resize(static_cast<size_t>(physical_slots_));
  std::iota(free_.begin(), free_.end(), 0);  // ascending is a heap
  epochs_[kBuiltInEpoch] = EmptyTables(layout, kBuiltInEpoch);
}

std::shared_ptr<EpochTables> HotPool::EmptyTables(const BundleLayout& layout, int64_t epoch) {
  auto tables = std::make_shared<EpochTables>();
  tables->epoch = epoch;
  const auto words = static_cast<size_t>(CeilDiv<int64_t>(layout.num_neurons, 64));
  EpochTables::Layer layer;
  layer.hot.assign(words, 0);
  layer.cold.assign(words, ~uint64_t{0});
  if (layout.num_neurons % 64 != 0)
    layer.cold.back() = (uint64_t{1} << (layout.num_neurons % 64)) - 1;
  layer.slot_of.assign(static_cast<size_t>(layout.num_neurons), -1);
  tables->layers.assign(static_cast<size_t>(layout.num_layers), layer);
  return tables;
}

std::shared_ptr<const EpochTables> HotPool::Find(int64_t epoch) const {
  std::lock_guard lock(mu_);
  const auto it = epochs_.find(epoch);
  return it == epochs_.end() ? nullptr : it->second;
}

int64_t HotPool::used_bytes() const {
  std::lock_guard lock(mu_);
  return UsedSlots() * layout_.bundle_bytes;
}

int64_t HotPool::spare_bytes() const {
  std::lock_guard lock(mu_);
  return (backed_slots_ - UsedSlots()) * layout_.bundle_bytes;
}

int64_t HotPool::BudgetSlots(const PlacementPlan& plan) const {
  int64_t hot = 0;
  for (const LayerPlacement& layer : plan.layers)
    hot += std::clamp<int64_t>(layer.num_hot, 0, layout_.num_neurons);
  if (hot > 0 && plan.budget_bytes <= 0) return capacity_slots();
  return std::clamp<int64_t>(std::max(hot, plan.budget_bytes / layout_.bundle_bytes), 0,
                             capacity_slots());
}

int64_t HotPool::budget_slots() const {
  std::lock_guard lock(mu_);
  if (epochs_.size() == 1) return capacity_slots();
  int64_t slots = 0;
  for (const auto& [epoch, tables] : epochs_) slots = std::max(slots, tables->budget_slots);
  return slots;
}

// The lowest free slot, for the neuron; there is one.
int32_t HotPool::Take(int64_t key) {
  std::pop_heap(free_.begin(), free_.end(), std::greater<>());
  const int32_t slot = free_.back();
  free_.pop_back();
  slot_of_[static_cast<size_t>(key)] = slot;
  users_[static_cast<size_t>(slot)] = 1;
  return slot;
}

void HotPool::Release(const EpochTables& tables) {
  for (size_t l = 0; l < tables.layers.size(); ++l) {
    for (size_t n = 0; n < tables.layers[l].slot_of.size(); ++n) {
      const int32_t slot = tables.layers[l].slot_of[n];
      if (slot < 0 || --users_[static_cast<size_t>(slot)] > 0) continue;
      int32_t& known =
          slot_of_[static_cast<size_t>(Key(static_cast<int64_t>(l), static_cast<int64_t>(n)))];
      if (known == slot) known = -1;
      if (on_freed_) on_freed_(slot);
      free_.push_back(slot);
      std::push_heap(free_.begin(), free_.end(), std::greater<>());
    }
  }
}

int64_t HotPool::SlotsUpToLast() const {
  int64_t slots = physical_slots_;
  while (slots > 0 && users_[static_cast<size_t>(slots - 1)] == 0) --slots;
  return slots;
}

void HotPool::SetCapacity(int64_t slots) {
  capacity_slots_.store(std::clamp<int64_t>(slots, 0, physical_slots_));
}

int64_t HotPool::extent_bytes() const {
  std::lock_guard lock(mu_);
  return SlotsUpToLast() * layout_.bundle_bytes;
}

void HotPool::FreeUnpinned() {
  std::erase_if(retired_, [this](const std::shared_ptr<const EpochTables>& tables) {
    if (tables.use_count() > 1) return false;
    Release(*tables);
    return true;
  });
}

absl::Status HotPool::Prepare(const PlacementPlan& plan, const CopyBundle& copy,
                              const std::function<void(int64_t, int64_t)>& progress,
                              const Publish& publish, const CheckBundle& check) {
  std::lock_guard preparing(prepare_mu_);
  if (Find(plan.epoch) != nullptr) return absl::OkStatus();
  if (static_cast<int64_t>(plan.layers.size()) != layout_.num_layers) {
    return absl::FailedPreconditionError(absl::StrCat("the plan has ", plan.layers.size(),
                                                      " layers, the model ", layout_.num_layers));
  }
  auto tables = EmptyTables(layout_, plan.epoch);
  tables->budget_slots = BudgetSlots(plan);
  int64_t wanted = 0;
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    const LayerPlacement& layer = plan.layers[l];
    if (layer.num_neurons != layout_.num_neurons ||
        layer.hot.size() != tables->layers[l].hot.size()) {
      return absl::FailedPreconditionError(absl::StrCat("layer ", l, " of the plan has ",
                                                        layer.num_neurons, " neurons, the model ",
                                                        layout_.num_neurons));
    }
    int64_t hot = 0;
    bool past_end = false;
    for (size_t w = 0; w < layer.hot.size(); ++w) {
      hot += std::popcount(layer.hot[w]);
      past_end |= (layer.hot[w] & ~tables->layers[l].cold[w]) != 0;  // nothing is hot yet
    }
    if (past_end || hot != layer.num_hot) {
      return absl::FailedPreconditionError(absl::StrCat("layer ", l, " of the plan names ", hot,
                                                        " hot neurons, says ", layer.num_hot,
                                                        ", of ", layout_.num_neurons));
    }
    wanted += hot;
  }
  if (wanted > capacity_slots_.load()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the plan needs ", FormatBytes(wanted * layout_.bundle_bytes),
                     " of hot pool, it has ", FormatBytes(capacity_bytes()),
                     "; lower the budget or restart with a larger --vram-budget"));
  }
  // Slots first, all or none.
  struct Copy {
    int64_t layer, neuron;
    int32_t slot;
  };
  std::vector<Copy> copies;
  {
    std::lock_guard lock(mu_);
    FreeUnpinned();
    int64_t missing = 0;
    for (size_t l = 0; l < plan.layers.size(); ++l) {
      for (int64_t n = 0; n < layout_.num_neurons; ++n) {
        if ((plan.layers[l].hot[static_cast<size_t>(n / 64)] >> (n % 64) & 1) == 0) continue;
        missing += slot_of_[static_cast<size_t>(Key(static_cast<int64_t>(l), n))] < 0 ? 1 : 0;
      }
    }
    if (const int64_t room = backed_slots_ - UsedSlots(); missing > room) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the plan moves ", missing, " neurons in, ", room,
                       " slots are free until older epochs are retired; try again"));
    }
    for (size_t l = 0; l < plan.layers.size(); ++l) {
      EpochTables::Layer& layer = tables->layers[l];
      layer.hot = plan.layers[l].hot;
      layer.num_hot = plan.layers[l].num_hot;
      for (size_t w = 0; w < layer.hot.size(); ++w) layer.cold[w] &= ~layer.hot[w];
      for (int64_t n = 0; n < layout_.num_neurons; ++n) {
        if ((layer.hot[static_cast<size_t>(n / 64)] >> (n % 64) & 1) == 0) continue;
        const int64_t key = Key(static_cast<int64_t>(l), n);
        int32_t slot = slot_of_[static_cast<size_t>(key)];
        if (slot >= 0) {
          ++users_[static_cast<size_t>(slot)];
        } else {
          slot = Take(key);
          copies.push_back({static_cast<int64_t>(l), n, slot});
        }
        layer.slot_of[static_cast<size_t>(n)] = slot;
      }
    }
  }
  const int64_t total = static_cast<int64_t>(copies.size()) * layout_.bundle_bytes;
  int64_t done = 0;
  const auto undo = [&](absl::Status status) {
    std::lock_guard lock(mu_);
    Release(*tables);
    return status;
  };
  for (const Copy& item : copies) {
    bool good = false;
    for (int attempt = 0; attempt < kCopyAttempts && !good; ++attempt) {
      if (absl::Status status = copy(item.layer, item.neuron, item.slot); !status.ok())
        return undo(std::move(status));
      good = !check || check(item.layer, item.neuron, item.slot);
    }
    if (!good) {
      return undo(absl::DataLossError(
          absl::StrCat("neuron ", item.neuron, " of layer ", item.layer, " was copied ",
                       kCopyAttempts, " times and never whole; check the machine's memory")));
    }
    done += layout_.bundle_bytes;
    if (progress && (done % (layout_.bundle_bytes * 64) == 0 || done == total))
      progress(done, total);
  }
  if (publish) {
    if (absl::Status status = publish(tables); !status.ok()) return undo(std::move(status));
  }
  std::lock_guard lock(mu_);
  epochs_[plan.epoch] = std::move(tables);
  return absl::OkStatus();
}

absl::Status HotPool::Retire(int64_t epoch) {
  std::lock_guard preparing(prepare_mu_);
  std::lock_guard lock(mu_);
  if (epoch == kBuiltInEpoch) return absl::InvalidArgumentError("epoch 0 is built in and stays");
  const auto it = epochs_.find(epoch);
  if (it == epochs_.end())
    return absl::NotFoundError(absl::StrCat("epoch ", epoch, " is not prepared"));
  retired_.push_back(std::move(it->second));
  epochs_.erase(it);
  FreeUnpinned();
  return absl::OkStatus();
}

bool HotPool::FreeRetired() {
  std::lock_guard lock(mu_);
  FreeUnpinned();
  return retired_.empty();
}

absl::Status HotPool::Compact(const MoveBundle& move, const Publish& publish,
                              std::optional<int64_t> limit) {
  // Holes of less than an eighth fill up again by themselves, as low slots are taken first.
  constexpr int64_t kWorthwhile = 8;
  std::lock_guard preparing(prepare_mu_);
  std::shared_ptr<EpochTables> tables;
  int64_t front = 0;                               // slots from here on are left
  std::vector<std::pair<int32_t, int32_t>> moves;  // from, to
  {
    std::lock_guard lock(mu_);
    FreeUnpinned();
    const int64_t end = SlotsUpToLast();
    const int64_t used = UsedSlots();
    front = std::max(used, limit.value_or(used));
    const bool worthwhile = limit.has_value() ? end > front : (end - used) * kWorthwhile > end;
    if (epochs_.size() != 2 || !retired_.empty() || !worthwhile) return absl::OkStatus();
    tables = std::make_shared<EpochTables>(*epochs_.rbegin()->second);
    for (size_t l = 0; l < tables->layers.size(); ++l) {
      std::vector<int32_t>& slots = tables->layers[l].slot_of;
      for (size_t n = 0; n < slots.size(); ++n) {
        if (slots[n] < 0) continue;
        if (slots[n] < front) {
          ++users_[static_cast<size_t>(slots[n])];
          continue;
        }
        const int32_t from = slots[n];
        slots[n] = Take(Key(static_cast<int64_t>(l), static_cast<int64_t>(n)));
        moves.emplace_back(from, slots[n]);
      }
    }
  }
  absl::Status status;
  for (size_t i = 0; i < moves.size() && status.ok(); ++i)
    status = move(moves[i].first, moves[i].second);
  if (status.ok() && publish) status = publish(tables);
  std::lock_guard lock(mu_);
  std::shared_ptr<const EpochTables>& current = epochs_.rbegin()->second;
  if (!status.ok()) {
    Release(*tables);
    for (size_t l = 0; l < current->layers.size(); ++l) {
      const std::vector<int32_t>& slots = current->layers[l].slot_of;
      for (size_t n = 0; n < slots.size(); ++n) {
        if (slots[n] < 0) continue;
        slot_of_[static_cast<size_t>(Key(static_cast<int64_t>(l), static_cast<int64_t>(n)))] =
            slots[n];
      }
    }
    return status;
  }
  retired_.push_back(std::exchange(current, std::move(tables)));
  FreeUnpinned();
  return absl::OkStatus();
}

bool HotPool::Trim(const std::function<void(int64_t)>& trim) {
  std::unique_lock preparing(prepare_mu_, std::try_to_lock);
  if (!preparing.owns_lock()) return false;
  int64_t slots = 0;
  {
    std::lock_guard lock(mu_);
    FreeUnpinned();
    slots = SlotsUpToLast();
  }
  trim(slots);
  std::lock_guard lock(mu_);
  return retired_.empty();
}

void HotPool::Resize(int64_t slots, const std::function<int64_t(int64_t)>& resize) {
  std::lock_guard preparing(prepare_mu_);
  int64_t least = 0;
  {
    std::lock_guard lock(mu_);
    FreeUnpinned();
    least = SlotsUpToLast();
  }
  const int64_t backed = resize(std::clamp(slots, least, physical_slots_));
  std::lock_guard lock(mu_);
  backed_slots_ = std::clamp(backed, least, physical_slots_);
}

}  // namespace isotherm::gpu
