#include "placement_service/plan/worker_view.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/process/log.h"

namespace isotherm {
namespace {

constexpr int kPlanAttempts = 3;

absl::Status CheckDescription(const WorkerDescription& description) {
  if (description.load_progress < 1) return absl::UnavailableError("is loading the model");
  if (description.num_layers < 1 || description.num_neurons < 1 || description.bundle_bytes < 1 ||
      description.capacity_bytes < 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("describes ", description.num_layers, " layers of ", description.num_neurons,
                     " neurons of ", description.bundle_bytes, " bytes and a capacity of ",
                     description.capacity_bytes));
  }
  return absl::OkStatus();
}

}  // namespace

bool IsTransient(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
         absl::IsCancelled(status);
}

void WorkerView::Refresh() {
  absl::StatusOr<WorkerDescription> description = port_.Describe();
  const absl::Status status =
      description.ok() ? CheckDescription(*description) : description.status();
  if (!status.ok()) {
    NoteAbsence(status).IgnoreError();
    return;
  }
  if (!absent_reason_.empty()) LogInfo("{} is there", std::string(name()));
  absent_reason_.clear();
  seen_ = true;
  description_ = *std::move(description);
}

absl::Status WorkerView::NoteAbsence(absl::Status status) {
  if (absent_reason_ != status.message()) {
    // One that was never there, and only does not answer, is starting.
    const bool starts = !seen_ && IsTransient(status);
    Log(starts ? LogLevel::kInfo : LogLevel::kWarning, "waiting for {}: {}", std::string(name()),
        std::string(status.message()));
    absent_reason_ = std::string(status.message());
  }
  description_.reset();
  return status;
}

bool WorkerView::Holds(int64_t epoch) const {
  ISOTHERM_CHECK(present());
  return std::find(description_->epochs.begin(), description_->epochs.end(), epoch) !=
         description_->epochs.end();
}

bool WorkerView::Committed(int64_t epoch) const {
  return Holds(epoch) && epoch <= description_->committed_epoch;
}

absl::Status WorkerView::Plan(const PlacementPlan& plan, int64_t term,
                              std::chrono::milliseconds timeout,
                              const std::function<void(int64_t, int64_t)>& progress) {
  const uint64_t wanted = PlanChecksum(plan);
  uint64_t got = 0;
  for (int attempt = 0; attempt < kPlanAttempts; ++attempt) {
    const auto checksum =
        port_.Run({PreparePhase::kPlan, term, plan.epoch, &plan, timeout, progress});
    if (!checksum.ok()) {
      return IsTransient(checksum.status()) ? NoteAbsence(checksum.status()) : checksum.status();
    }
    if (!Holds(plan.epoch)) description_->epochs.push_back(plan.epoch);
    got = *checksum;
    if (got == wanted) return absl::OkStatus();
    LogWarning("{} took epoch {} with the checksum {:x} instead of {:x}; sending it again",
               std::string(name()), plan.epoch, got, wanted);
    absl::Status aborted = Run(PreparePhase::kAbort, plan.epoch, term, timeout);
    if (!aborted.ok()) return aborted;
  }
  return absl::DataLossError(absl::StrCat(name(), " took the plan with the checksum ", got,
                                          " instead of ", wanted, ", ", kPlanAttempts,
                                          " times; restart that worker"));
}

absl::Status WorkerView::Run(PreparePhase phase, int64_t epoch, int64_t term,
                             std::chrono::milliseconds timeout) {
  const auto result = port_.Run({phase, term, epoch, nullptr, timeout, {}});
  // Slow to retire is not away: steps may still name the epoch.
  const bool slow = phase == PreparePhase::kRetire && absl::IsDeadlineExceeded(result.status());
  if (!result.ok()) {
    return IsTransient(result.status()) && !slow ? NoteAbsence(result.status()) : result.status();
  }
  if (phase == PreparePhase::kCommit) {
    description_->committed_epoch = std::max(description_->committed_epoch, epoch);
  } else {
    std::erase(description_->epochs, epoch);
  }
  return absl::OkStatus();
}

}  // namespace isotherm
