#include "cpu_worker/engine/epoch_tables.h"

#include <bit>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/status_macros.h"
#include "common/step/step.h"

namespace isotherm::cpu {

EpochTables::EpochTables(const Model& model) : model_(model) {
  auto table = std::make_shared<EpochTable>();
  table->epoch = kBuiltInEpoch;
  const auto words = static_cast<size_t>(CeilDiv<int64_t>(model.num_neurons, 64));
  table->cold.assign(static_cast<size_t>(model.num_layers),
                     std::vector<uint64_t>(words, ~uint64_t{0}));
  epochs_[kBuiltInEpoch] = {std::move(table), true};
}

absl::Status EpochTables::Fence(int64_t term) {
  if (term < term_) {
    return absl::AbortedError(absl::StrCat("term ", term, " is over, term ", term_,
                                           " was seen; another placement_service took over"));
  }
  term_ = term;
  return absl::OkStatus();
}

absl::Status EpochTables::CheckPlan(const PlacementPlan& plan) const {
  if (plan.epoch <= kBuiltInEpoch) {
    return absl::InvalidArgumentError(absl::StrCat(
        "plan of epoch ", plan.epoch, "; want 1 or more, ", kBuiltInEpoch, " is the built-in one"));
  }
  if (plan.model_digest != model_.digest) {
    return absl::FailedPreconditionError(
        absl::StrCat("plan of model ", plan.model_digest, ", this worker loaded ", model_.digest));
  }
  if (static_cast<int64_t>(plan.layers.size()) != model_.num_layers) {
    return absl::FailedPreconditionError(
        absl::StrCat("plan of ", plan.layers.size(), " layers, the model has ", model_.num_layers));
  }
  const auto words = static_cast<size_t>(CeilDiv<int64_t>(model_.num_neurons, 64));
  for (size_t layer = 0; layer < plan.layers.size(); ++layer) {
    const LayerPlacement& placement = plan.layers[layer];
    if (placement.num_neurons != model_.num_neurons || placement.hot.size() != words) {
      return absl::FailedPreconditionError(
          absl::StrCat("plan: layer ", layer, " has ", placement.num_neurons, " neurons in ",
                       placement.hot.size(), " words, the model has ", model_.num_neurons));
    }
    int64_t hot = 0;
    for (const uint64_t word : placement.hot) hot += std::popcount(word);
    const int64_t tail = model_.num_neurons % 64;
    const bool past_end = tail != 0 && placement.hot.back() >> tail != 0;
    if (past_end || hot != placement.num_hot) {
      return absl::FailedPreconditionError(
          absl::StrCat("plan: layer ", layer, " has ", hot, " bits set",
                       past_end ? ", some past the last neuron" : "", ", it claims ",
                       placement.num_hot, " hot neurons"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> EpochTables::Plan(const PlacementPlan& plan, int64_t term) {
  ISOTHERM_RETURN_IF_ERROR(CheckPlan(plan));
  auto table = std::make_shared<EpochTable>();
  table->epoch = plan.epoch;
  table->checksum = PlanChecksum(plan);
  for (const LayerPlacement& placement : plan.layers) {
    std::vector<uint64_t>& cold = table->cold.emplace_back(placement.hot);
    for (uint64_t& word : cold) word = ~word;
  }
  const uint64_t checksum = table->checksum;

  absl::MutexLock lock(&mu_);
  ISOTHERM_RETURN_IF_ERROR(Fence(term));
  if (const auto known = epochs_.find(plan.epoch); known != epochs_.end()) {
    if (known->second.table->checksum == checksum) return checksum;
    if (known->second.committed) {
      return absl::FailedPreconditionError(
          absl::StrCat("epoch ", plan.epoch, " is committed with other contents"));
    }
  } else if (plan.epoch < NewestCommittedLocked()) {
    return absl::AbortedError(absl::StrCat("epoch ", plan.epoch, " is older than the committed ",
                                           NewestCommittedLocked()));
  } else if (epochs_.size() >= kMaxEpochs) {
    return absl::ResourceExhaustedError(absl::StrCat("this worker keeps ", epochs_.size(),
                                                     " epochs already; retire or abort some"));
  }
  epochs_[plan.epoch] = {std::move(table), false};
  return checksum;
}

absl::Status EpochTables::Commit(int64_t epoch, int64_t term) {
  absl::MutexLock lock(&mu_);
  ISOTHERM_RETURN_IF_ERROR(Fence(term));
  const auto entry = epochs_.find(epoch);
  if (entry == epochs_.end()) {
    return absl::FailedPreconditionError(
        absl::StrCat("epoch ", epoch, " was not planned on this worker; send its plan first"));
  }
  entry->second.committed = true;
  return absl::OkStatus();
}

absl::Status EpochTables::Abort(int64_t epoch, int64_t term) {
  absl::MutexLock lock(&mu_);
  ISOTHERM_RETURN_IF_ERROR(Fence(term));
  const auto entry = epochs_.find(epoch);
  if (entry == epochs_.end()) return absl::OkStatus();
  if (entry->second.committed) {
    return absl::FailedPreconditionError(
        absl::StrCat("epoch ", epoch, " is committed; retire it instead"));
  }
  epochs_.erase(entry);
  return absl::OkStatus();
}

absl::Status EpochTables::Retire(int64_t epoch, int64_t term) {
  if (epoch == kBuiltInEpoch) {
    return absl::InvalidArgumentError("the built-in epoch cannot be retired");
  }
  absl::MutexLock lock(&mu_);
  ISOTHERM_RETURN_IF_ERROR(Fence(term));
  epochs_.erase(epoch);
  return absl::OkStatus();
}

std::shared_ptr<const EpochTable> EpochTables::Find(int64_t epoch) const {
  absl::MutexLock lock(&mu_);
  const auto entry = epochs_.find(epoch);
  return entry == epochs_.end() || !entry->second.committed ? nullptr : entry->second.table;
}

std::vector<int64_t> EpochTables::Committed() const {
  absl::MutexLock lock(&mu_);
  std::vector<int64_t> epochs;
  for (const auto& [epoch, entry] : epochs_) {
    if (entry.committed) epochs.push_back(epoch);
  }
  return epochs;
}

int64_t EpochTables::NewestCommitted() const {
  absl::MutexLock lock(&mu_);
  return NewestCommittedLocked();
}

int64_t EpochTables::NewestCommittedLocked() const {
  int64_t newest = kBuiltInEpoch;
  for (const auto& [epoch, entry] : epochs_) {
    if (entry.committed) newest = epoch;  // ascending
  }
  return newest;
}

}  // namespace isotherm::cpu
