#include "placement_service/plan/recomputations.h"

#include <algorithm>
#include <utility>

#include "common/base/status_macros.h"
#include "common/process/log.h"

namespace isotherm {

absl::StatusOr<std::optional<RecomputationRecord>> Recomputations::Find(absl::string_view id) {
  {
    absl::MutexLock lock(&mu_);
    if (running_.has_value() && running_->id == id) return running_;
    for (const RecomputationRecord& record : ended_) {
      if (record.id == id) return std::optional<RecomputationRecord>(record);
    }
  }
  ISOTHERM_ASSIGN_OR_RETURN(std::optional<RecomputationRecord> stored, store_.GetRecomputation(id));
  if (stored.has_value()) return stored;
  // The service may have died between the plan and the note of its end.
  ISOTHERM_ASSIGN_OR_RETURN(const std::optional<ControlRequest> request, store_.FindRequest(id));
  if (!request.has_value()) return std::optional<RecomputationRecord>();
  ISOTHERM_ASSIGN_OR_RETURN(PlanRecord plan, store_.Get(request->epoch, /*bitmaps=*/false));
  RecomputationRecord record{.id = std::string(id),
                             .fingerprint = request->fingerprint,
                             .progress = 1,
                             .moved_neurons = plan.moved_neurons,
                             .predicted_gain = plan.predicted_gain,
                             .reason = plan.reason};
  switch (plan.state) {
    case PlanState::kPreparing:
      record.state = RecomputationState::kCopying;
      record.progress = 0;
      break;
    case PlanState::kLive:
    case PlanState::kRetired:
      record.state = RecomputationState::kApplied;
      break;
    case PlanState::kFailed:
      record.state = RecomputationState::kFailed;
      record.reason = plan.message;
      break;
  }
  record.proposal = std::move(plan.plan);
  return std::optional<RecomputationRecord>(std::move(record));
}

std::optional<RecomputationRecord> Recomputations::Running() const {
  absl::MutexLock lock(&mu_);
  return running_;
}

bool Recomputations::Start(const RecomputationRecord& record) {
  {
    absl::MutexLock lock(&mu_);
    if (running_.has_value()) return false;
    running_ = record;
  }
  feed_.PublishRecomputation(record);
  return true;
}

void Recomputations::Update(const RecomputationRecord& record) {
  {
    absl::MutexLock lock(&mu_);
    if (!running_.has_value() || running_->id != record.id) return;
    running_ = record;
  }
  feed_.PublishRecomputation(record);
}

void Recomputations::Progress(absl::string_view id, double progress) {
  absl::MutexLock lock(&mu_);
  if (running_.has_value() && running_->id == id) running_->progress = progress;
}

void Recomputations::End(RecomputationRecord record) {
  record.progress = 1;
  if (const absl::Status status = store_.PutRecomputation(record); !status.ok()) {
    LogWarning("recomputation {} ended and is not recorded: {}", record.id,
               std::string(status.message()));
  }
  feed_.PublishRecomputation(record);
  absl::MutexLock lock(&mu_);
  if (running_.has_value() && running_->id == record.id) running_.reset();
  ended_.push_back(std::move(record));
  if (ended_.size() > kRemembered) ended_.pop_front();
}

}  // namespace isotherm
