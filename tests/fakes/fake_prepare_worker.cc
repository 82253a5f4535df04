#include "tests/fakes/fake_prepare_worker.h"

#include <algorithm>

#include <bit>
#include <utility>

#include "absl/strings/str_cat.h"

namespace isotherm {

FakePrepareWorker::FakePrepareWorker(FakePrepareOptions options) : options_(std::move(options)) {
  epochs_[0].committed = true;
}

absl::StatusOr<WorkerDescription> FakePrepareWorker::Describe() {
  absl::MutexLock lock(&mu_);
  if (away_) return absl::UnavailableError("connection refused");
  WorkerDescription out{.instance_id = absl::StrCat(options_.name, "-", instance_),
                        .model_digest = options_.model_digest,
                        .layout_hash = 7,
                        .capacity_bytes = options_.capacity_bytes,
                        .load_progress = load_progress_,
                        .num_layers = options_.num_layers,
                        .num_neurons = options_.num_neurons,
                        .bundle_bytes = options_.bundle_bytes,
                        .device = "fake",
                        .memory = options_.memory};
  for (const auto& [epoch, entry] : epochs_) {
    out.epochs.push_back(epoch);
    if (entry.committed) out.committed_epoch = epoch;
  }
  if (options_.spare_bytes >= 0) {
    out.spare_bytes = PoolBytes(nullptr) - ResidentBytes(nullptr);
  }
  return out;
}

int64_t FakePrepareWorker::PoolBytes(const PlacementPlan* with) const {
  int64_t budget = with != nullptr || epochs_.size() > 1 ? 0 : options_.capacity_bytes;
  const auto count = [&](const PlacementPlan& plan) {
    budget = std::max({budget, plan.budget_bytes, plan.used_bytes});
  };
  for (const auto& [epoch, entry] : epochs_) count(entry.plan);
  if (with != nullptr) count(*with);
  return std::min(budget, options_.capacity_bytes) + options_.spare_bytes;
}

// Bundles that are hot in any epoch, each once.
int64_t FakePrepareWorker::ResidentBytes(const PlacementPlan* with) const {
  int64_t count = 0;
  for (int64_t l = 0; l < options_.num_layers; ++l) {
    std::vector<uint64_t> any(static_cast<size_t>((options_.num_neurons + 63) / 64), 0);
    const auto add = [&](const PlacementPlan& plan) {
      if (plan.layers.empty()) return;
      const std::vector<uint64_t>& hot = plan.layers[static_cast<size_t>(l)].hot;
      for (size_t w = 0; w < any.size(); ++w) any[w] |= hot[w];
    };
    for (const auto& [epoch, entry] : epochs_) add(entry.plan);
    if (with != nullptr) add(*with);
    for (const uint64_t word : any) count += std::popcount(word);
  }
  return count * options_.bundle_bytes;
}

absl::StatusOr<uint64_t> FakePrepareWorker::Run(const PhaseRequest& request) {
  Hook hook;
  {
    absl::MutexLock lock(&mu_);
    if (away_) return absl::UnavailableError("connection refused");
    hook = hook_;
  }
  if (hook != nullptr) {
    if (absl::Status status = hook(request.phase, request.epoch, true); !status.ok()) return status;
  }
  absl::StatusOr<uint64_t> result = absl::InternalError("");
  {
    absl::MutexLock lock(&mu_);
    result = Apply(request);
  }
  if (hook != nullptr && result.ok()) {
    if (absl::Status status = hook(request.phase, request.epoch, false); !status.ok()) {
      return status;
    }
  }
  return result;
}

absl::StatusOr<uint64_t> FakePrepareWorker::Apply(const PhaseRequest& request) {
  if (request.term < term_) return absl::AbortedError(absl::StrCat("term ", term_, " was seen"));
  term_ = request.term;
  const auto entry = epochs_.find(request.epoch);
  switch (request.phase) {
    case PreparePhase::kPlan: {
      const PlacementPlan& plan = *request.plan;
      if (plan.model_digest != options_.model_digest ||
          static_cast<int64_t>(plan.layers.size()) != options_.num_layers) {
        return absl::FailedPreconditionError("plan of another model");
      }
      if (entry == epochs_.end()) {
        if (request.epoch < epochs_.rbegin()->first && epochs_.rbegin()->second.committed) {
          return absl::AbortedError("older than the committed epoch");
        }
        if (static_cast<int64_t>(epochs_.size()) >= options_.max_epochs) {
          return absl::ResourceExhaustedError("too many epochs");
        }
      }
      int64_t hot = 0;
      for (const LayerPlacement& layer : plan.layers) hot += layer.num_hot;
      if (options_.name == "gpu_worker" && hot * options_.bundle_bytes > options_.capacity_bytes) {
        return absl::ResourceExhaustedError("the hot pool is too small");
      }
      if (options_.spare_bytes >= 0 && ResidentBytes(&plan) > PoolBytes(&plan)) {
        return absl::ResourceExhaustedError("no slots are free until older epochs are retired");
      }
      if (entry == epochs_.end()) epochs_[request.epoch] = {plan, false};
      const bool corrupt = corrupt_ > 0;
      if (corrupt) --corrupt_;
      return PlanChecksum(plan) + (corrupt ? 1 : 0);
    }
    case PreparePhase::kCommit:
      if (entry == epochs_.end()) return absl::FailedPreconditionError("never planned");
      entry->second.committed = true;
      return 0;
    case PreparePhase::kAbort:
      if (entry == epochs_.end()) return 0;
      if (entry->second.committed) return absl::FailedPreconditionError("committed");
      epochs_.erase(entry);
      return 0;
    case PreparePhase::kRetire:
      if (pinned_[request.epoch]) return absl::DeadlineExceededError("still named");
      epochs_.erase(request.epoch);
      return 0;
  }
  return absl::InternalError("unknown phase");
}

void FakePrepareWorker::Restart() { Restart(options_); }

void FakePrepareWorker::Restart(FakePrepareOptions options) {
  absl::MutexLock lock(&mu_);
  options_ = std::move(options);
  epochs_.clear();
  epochs_[0].committed = true;
  pinned_.clear();
  term_ = 0;
  ++instance_;
  away_ = false;
}

void FakePrepareWorker::SetCapacity(int64_t bytes) {
  absl::MutexLock lock(&mu_);
  options_.capacity_bytes = bytes;
}
void FakePrepareWorker::SetAway(bool away) {
  absl::MutexLock lock(&mu_);
  away_ = away;
}
void FakePrepareWorker::SetLoadProgress(double progress) {
  absl::MutexLock lock(&mu_);
  load_progress_ = progress;
}
void FakePrepareWorker::SetHook(Hook hook) {
  absl::MutexLock lock(&mu_);
  hook_ = std::move(hook);
}
void FakePrepareWorker::CorruptChecksums(int times) {
  absl::MutexLock lock(&mu_);
  corrupt_ = times;
}
void FakePrepareWorker::Pin(int64_t epoch, bool pinned) {
  absl::MutexLock lock(&mu_);
  pinned_[epoch] = pinned;
}

std::vector<int64_t> FakePrepareWorker::CommittedEpochs() const {
  absl::MutexLock lock(&mu_);
  std::vector<int64_t> out;
  for (const auto& [epoch, entry] : epochs_) {
    if (entry.committed) out.push_back(epoch);
  }
  return out;
}
std::vector<int64_t> FakePrepareWorker::Epochs() const {
  absl::MutexLock lock(&mu_);
  std::vector<int64_t> out;
  for (const auto& [epoch, entry] : epochs_) out.push_back(epoch);
  return out;
}
PlacementPlan FakePrepareWorker::PlanOf(int64_t epoch) const {
  absl::MutexLock lock(&mu_);
  const auto entry = epochs_.find(epoch);
  return entry == epochs_.end() ? PlacementPlan() : entry->second.plan;
}
int64_t FakePrepareWorker::term() const {
  absl::MutexLock lock(&mu_);
  return term_;
}

}  // namespace isotherm
