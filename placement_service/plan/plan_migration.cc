// How PlanPublisher makes a plan live: intent, in several epochs where room is short, prepare and
// commit on both workers, announce, retire; and what it does when one of these fails.

#include <algorithm>
#include <bit>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "common/process/log.h"
#include "placement_service/plan/plan_codec.h"
#include "placement_service/plan/plan_publisher.h"

namespace isotherm {
namespace {

// After refused plans that nobody asked for.
constexpr std::chrono::seconds kMaxBackOff{60};
// Of what is to go, when the gpu_worker has no room at all for what is to come.
constexpr int64_t kDepartureShare = 16;

int64_t Popcount(const std::vector<uint64_t>& words) {
  int64_t count = 0;
  for (const uint64_t word : words) count += std::popcount(word);
  return count;
}

// Moves up to `in` neurons of `target` in and `out` others out, layer by layer.
void StepTowards(const std::vector<LayerPlacement>& target, int64_t in, int64_t out,
                 std::vector<LayerPlacement>& layers) {
  for (size_t l = 0; l < layers.size(); ++l) {
    for (size_t w = 0; w < layers[l].hot.size(); ++w) {
      uint64_t& hot = layers[l].hot[w];
      for (uint64_t bits = target[l].hot[w] & ~hot; bits != 0 && in > 0; bits &= bits - 1, --in) {
        hot |= bits & -bits;
      }
      for (uint64_t bits = hot & ~target[l].hot[w]; bits != 0 && out > 0; bits &= bits - 1, --out) {
        hot &= ~(bits & -bits);
      }
    }
    layers[l].num_hot = Popcount(layers[l].hot);
  }
}

// Of what is hot in `to` and not in `from`.
int64_t BytesIn(const PlanRecord& from, const PlanRecord& to, const ModelShape& shape) {
  int64_t count = 0;
  for (size_t l = 0; l < to.plan.layers.size(); ++l) {
    for (size_t w = 0; w < to.plan.layers[l].hot.size(); ++w) {
      count += std::popcount(to.plan.layers[l].hot[w] & ~from.plan.layers[l].hot[w]);
    }
  }
  return count * shape.bundle_bytes;
}

}  // namespace

int64_t PlanPublisher::NextEpoch() {
  int64_t newest = store_.NewestEpoch().value_or(0);
  for (const WorkerView* worker : workers_) {
    if (!worker->present()) continue;
    for (const int64_t epoch : worker->description().epochs) newest = std::max(newest, epoch);
  }
  return newest + 1;
}

int64_t PlanPublisher::SpareBytes() const {
  return gpu_.present() ? gpu_.description().spare_bytes : -1;
}

int64_t PlanPublisher::RoomFor(const PlacementPlan& next, const PlacementPlan& live) const {
  const int64_t spare = SpareBytes();
  if (spare < 0) return spare;
  const auto within = [this](const PlacementPlan& plan) {
    return std::min(plan.budget_bytes, facts_->capacity_bytes);
  };
  return spare + std::max<int64_t>(0, within(next) - within(live));
}

// The intent of `record`, or of a first step towards it when the gpu_worker has no room for all
// that comes.
absl::Status PlanPublisher::Begin(PlanRecord record, std::optional<ControlRequest> request) {
  const PlanRecord* live = UsableLive();
  record.plan.model_digest = facts_->shape.digest;
  record.start_options = options_.start_options;
  record.message.clear();
  const int64_t spare = live != nullptr ? RoomFor(record.plan, live->plan) : -1;
  if (live != nullptr && spare >= 0 && BytesIn(*live, record, facts_->shape) > spare) {
    goal_ = Goal{.record = std::move(record), .request = std::move(request)};
    return ContinueGoal();
  }
  return BeginStep(std::move(record), request);
}

// The next epoch on the way to goal_: all that is left, or as much as the gpu_worker has room for.
absl::Status PlanPublisher::ContinueGoal() {
  const PlanRecord* live = UsableLive();
  Goal goal = *std::exchange(goal_, std::nullopt);
  const int64_t spare = live != nullptr ? RoomFor(goal.record.plan, live->plan) : -1;
  if (spare < 0) return absl::UnavailableError("the gpu_worker went away; ask again");
  const std::vector<LayerPlacement>& target = goal.record.plan.layers;
  int64_t in = 0, out = 0;
  for (size_t l = 0; l < target.size(); ++l) {
    for (size_t w = 0; w < target[l].hot.size(); ++w) {
      in += std::popcount(target[l].hot[w] & ~live->plan.layers[l].hot[w]);
      out += std::popcount(live->plan.layers[l].hot[w] & ~target[l].hot[w]);
    }
  }
  const int64_t bundle = facts_->shape.bundle_bytes;
  const int64_t room = spare / bundle;
  absl::Status status;
  if (in <= room) {
    status = BeginStep(std::move(goal.record), goal.request);
  } else if (room == 0 && out == 0) {
    status = absl::ResourceExhaustedError("the gpu_worker has no room to move neurons in");
  } else {
    PlanRecord step = goal.record;
    step.plan.layers = live->plan.layers;
    // Twice as many go as come, so that the next step has twice the room: a few epochs do what one
    // for each roomful would take dozens for. What goes is worth less than what then comes sooner.
    const int64_t leave =
        std::max({room > 0 ? std::min(out, 2 * room) : CeilDiv(out, kDepartureShare), int64_t{1}});
    StepTowards(target, room, leave, step.plan.layers);
    step.plan.used_bytes = 0;
    for (const LayerPlacement& layer : step.plan.layers) {
      step.plan.used_bytes += layer.num_hot * bundle;
    }
    step.reason = absl::StrCat("step ", ++goal.step, " towards: ", goal.record.reason);
    goal_ = std::move(goal);
    status = BeginStep(std::move(step), std::nullopt);
  }
  if (!status.ok()) goal_.reset();
  return status;
}

absl::Status PlanPublisher::BeginStep(PlanRecord record,
                                      const std::optional<ControlRequest>& request) {
  const PlanRecord* live = UsableLive();
  record.state = PlanState::kPreparing;
  record.plan.epoch = NextEpoch();
  record.plan.created_unix_ms = clock_.WallUs() / 1000;
  record.plan.etag = PlanEtag(record.plan);
  record.moved_neurons = MovedNeurons(live != nullptr ? live->plan : PlacementPlan(), record.plan);
  record.measured_hit_share.reset();
  record.measured_gain.reset();
  ISOTHERM_RETURN_IF_ERROR(store_.InsertPreparing(record, request));
  LogInfo("epoch {}: {} of {}, objective {:.4f}, {} neurons move: {}", record.plan.epoch,
          FormatBytes(record.plan.used_bytes), FormatBytes(record.plan.budget_bytes),
          record.plan.objective, record.moved_neurons, record.reason);
  feed_->Publish(record.plan, PlanState::kPreparing, "");
  pending_ = std::move(record);
  pending_since_ = clock_.Now();
  return absl::OkStatus();
}

void PlanPublisher::AdvancePending() {
  const int64_t epoch = pending_->plan.epoch;
  if (pending_->plan.model_digest != facts_->shape.digest) {
    return FailPending(absl::FailedPreconditionError("the workers serve another model now"));
  }
  if (pending_deadline_.has_value() && clock_.Now() >= *pending_deadline_) {
    return FailPending(absl::DeadlineExceededError("the time limit passed before it was live"));
  }
  absl::Status status;
  for (WorkerView* worker : workers_) {
    if (!worker->present()) {
      status = absl::UnavailableError(
          absl::StrCat("waiting for ", worker->name(), ": ", worker->absent_reason()));
    } else if (worker->description().committed_epoch > epoch) {
      return FailPending(absl::FailedPreconditionError(
          absl::StrCat(worker->name(), " went on to epoch ", worker->description().committed_epoch,
                       " without this service")));
    }
  }
  for (WorkerView* worker : workers_) {
    // Room for it: a worker keeps the live epoch and this one.
    if (status.ok() && !worker->Holds(epoch) && worker->description().epochs.size() > 2 &&
        !RetireOn(*worker)) {
      if (fenced_) return;
      status = absl::UnavailableError(
          absl::StrCat("waiting for ", worker->name(), " to retire an older epoch"));
    }
  }
  for (WorkerView* worker : workers_) {
    if (!status.ok() || worker->Committed(epoch)) continue;
    status = worker->Plan(
        pending_->plan, term_, options_.stall_timeout, [&](int64_t done, int64_t total) {
          const double share =
              total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 1;
          recomputations_->Progress(copying_id_, share);
        });
  }
  for (WorkerView* worker : workers_) {
    if (!status.ok() || worker->Committed(epoch)) continue;
    status = worker->Run(PreparePhase::kCommit, epoch, term_, options_.stall_timeout);
  }
  if (absl::IsAborted(status)) return Fence(status);
  if (!status.ok()) {
    const bool wait =
        IsTransient(status) &&
        (UsableLive() == nullptr || clock_.Now() - pending_since_ < options_.stall_timeout);
    return wait ? Block(std::string(status.message())) : FailPending(status);
  }
  if (const absl::Status stored = store_.MarkLive(epoch); !stored.ok()) {
    // Committed but not announced: nobody names it. It goes live when the store can say so.
    goal_.reset();
    FinishWaiters(stored);
    const std::string notice =
        absl::StrCat("epoch ", epoch, " is ready but cannot be recorded: ", stored.message());
    Notify(pending_->plan, PlanState::kPreparing, notice);
    return Block(notice);
  }
  GoLive();
}

// The pending plan is on every worker and in the store.
void PlanPublisher::GoLive() {
  const std::shared_ptr<const PlanRecord> old = live_;
  gains_.BeforeFlip();
  pending_->state = PlanState::kLive;
  live_ = std::make_shared<const PlanRecord>(*std::move(pending_));
  pending_.reset();
  options_changed_ = live_->start_options != options_.start_options;
  failures_ = 0;
  traffic_.SetLive(live_->plan);
  ShowLive();
  LogInfo("epoch {} is live", live_->plan.epoch);
  feed_->Publish(live_->plan, PlanState::kLive, "");
  if (old != nullptr) feed_->Publish(old->plan, PlanState::kRetired, "");
  if (!goal_.has_value()) FinishWaiters(*live_);
}

void PlanPublisher::FailPending(const absl::Status& status) {
  const PlanRecord failed = *pending_;
  const std::string message =
      absl::StrCat(absl::StatusCodeToString(status.code()), ": ", status.message());
  goal_.reset();
  FinishWaiters(status);
  if (const absl::Status stored = store_.MarkFailed(failed.plan.epoch, message); !stored.ok()) {
    doomed_ = status;
    return Block(absl::StrCat("epoch ", failed.plan.epoch,
                              " failed and cannot be recorded: ", stored.message()));
  }
  LogError("epoch {} failed: {}", failed.plan.epoch, message);
  doomed_.reset();
  pending_.reset();  // what workers hold of it is an extra epoch now
  feed_->Publish(failed.plan, PlanState::kFailed, message);
  Refused(status);
}

void PlanPublisher::Refused(const absl::Status& status) {
  const auto back_off =
      std::min<std::chrono::seconds>(std::chrono::seconds(1 << failures_), kMaxBackOff);
  ++failures_;
  next_plan_at_ = clock_.Now() + back_off;
  const std::string notice = absl::StrCat("no new plan: ", status.message());
  Block(notice);
  Notify(live_ != nullptr ? live_->plan : BuiltIn().plan, PlanState::kLive, notice);
}

void PlanPublisher::RestoreLive() {
  const PlanRecord* live = UsableLive();
  if (live == nullptr || live->plan.used_bytes > facts_->capacity_bytes) return;
  for (WorkerView* worker : workers_) {
    if (!worker->present()) {
      Block(absl::StrCat("waiting for ", worker->name(), ": ", worker->absent_reason()));
      continue;
    }
    const int64_t epoch = live->plan.epoch;
    if (worker->Committed(epoch) || worker->description().committed_epoch > epoch) continue;
    absl::Status status = worker->Plan(live->plan, term_, options_.stall_timeout);
    if (status.ok()) {
      status = worker->Run(PreparePhase::kCommit, epoch, term_, options_.stall_timeout);
    }
    if (absl::IsAborted(status)) return Fence(status);
    if (status.ok()) {
      LogInfo("{} has epoch {} again", std::string(worker->name()), epoch);
    } else {
      Block(absl::StrCat(worker->name(), " did not take epoch ", epoch, ": ", status.message()));
    }
  }
}

void PlanPublisher::RetireExtras() {
  for (WorkerView* worker : workers_) {
    if (worker->present() && !fenced_) RetireOn(*worker);
  }
}

// Frees all epochs but the built-in, live and pending ones. False when some are left.
bool PlanPublisher::RetireOn(WorkerView& worker) {
  const std::vector<int64_t> epochs = worker.description().epochs;
  for (const int64_t epoch : epochs) {
    const bool wanted = epoch == 0 || (live_ != nullptr && epoch == live_->plan.epoch) ||
                        (pending_.has_value() && epoch == pending_->plan.epoch);
    if (wanted) continue;
    const PreparePhase phase =
        worker.Committed(epoch) ? PreparePhase::kRetire : PreparePhase::kAbort;
    const absl::Status status = worker.Run(phase, epoch, term_, options_.retire_timeout);
    if (absl::IsAborted(status)) {
      Fence(status);
      return false;
    }
    if (!status.ok()) {
      if (!IsTransient(status)) {
        LogWarning("{} did not free epoch {}: {}", std::string(worker.name()), epoch,
                   std::string(status.message()));
      }
      return false;
    }
  }
  return true;
}

}  // namespace isotherm
