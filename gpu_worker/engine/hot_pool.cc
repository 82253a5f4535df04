#include "gpu_worker/engine/hot_pool.h"

#include <algorithm>
#include <bit>
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
      physical_slots_(std::clamp<int64_t>(physical_slots, capacity_slots_,
                                          layout.num_neurons * layout.num_layers)) {
  slots_.resize(static_cast<size_t>(layout.num_neurons * layout.num_layers));
  free_.reserve(static_cast<size_t>(physical_slots_));
  for (int64_t slot = physical_slots_; slot > 0; --slot)
    free_.push_back(static_cast<int32_t>(slot - 1));
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
  return (physical_slots_ - static_cast<int64_t>(free_.size())) * layout_.bundle_bytes;
}

void HotPool::Release(const EpochTables& tables) {
  for (size_t l = 0; l < tables.layers.size(); ++l) {
    for (size_t n = 0; n < tables.layers[l].slot_of.size(); ++n) {
      if (tables.layers[l].slot_of[n] < 0) continue;
      Slot& slot =
          slots_[static_cast<size_t>(Key(static_cast<int64_t>(l), static_cast<int64_t>(n)))];
      if (--slot.users == 0) {
        free_.push_back(slot.slot);
        slot.slot = -1;
      }
    }
  }
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
                              const Publish& publish) {
  std::lock_guard preparing(prepare_mu_);
  if (Find(plan.epoch) != nullptr) return absl::OkStatus();
  if (static_cast<int64_t>(plan.layers.size()) != layout_.num_layers) {
    return absl::FailedPreconditionError(absl::StrCat("the plan has ", plan.layers.size(),
                                                      " layers, the model ", layout_.num_layers));
  }
  auto tables = EmptyTables(layout_, plan.epoch);
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
  if (wanted > capacity_slots_) {
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
        missing += slots_[static_cast<size_t>(Key(static_cast<int64_t>(l), n))].users == 0 ? 1 : 0;
      }
    }
    if (missing > static_cast<int64_t>(free_.size())) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the plan moves ", missing, " neurons in, ", free_.size(),
                       " slots are free until older epochs are retired; try again"));
    }
    for (size_t l = 0; l < plan.layers.size(); ++l) {
      EpochTables::Layer& layer = tables->layers[l];
      layer.hot = plan.layers[l].hot;
      layer.num_hot = plan.layers[l].num_hot;
      for (size_t w = 0; w < layer.hot.size(); ++w) layer.cold[w] &= ~layer.hot[w];
      for (int64_t n = 0; n < layout_.num_neurons; ++n) {
        if ((layer.hot[static_cast<size_t>(n / 64)] >> (n % 64) & 1) == 0) continue;
        Slot& slot = slots_[static_cast<size_t>(Key(static_cast<int64_t>(l), n))];
        if (slot.users++ == 0) {
          slot.slot = free_.back();
          free_.pop_back();
          copies.push_back({static_cast<int64_t>(l), n, slot.slot});
        }
        layer.slot_of[static_cast<size_t>(n)] = slot.slot;
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
    if (absl::Status status = copy(item.layer, item.neuron, item.slot); !status.ok())
      return undo(std::move(status));
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

}  // namespace isotherm::gpu
