#include "placement_service/plan/plan_publisher.h"

#include <pthread.h>

#include <algorithm>
#include <bit>
#include <future>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "common/process/log.h"
#include "placement_service/solver/solve_placement.h"

namespace isotherm {
namespace {

// The plan that every worker has from its start.
PlacementPlan BuiltInPlan(const std::string& digest, int64_t num_layers, int64_t num_neurons) {
  PlacementPlan plan{.model_digest = digest, .profile = "none", .solver = "built in"};
  LayerPlacement layer{.num_neurons = num_neurons};
  layer.hot.assign(static_cast<size_t>((num_neurons + 63) / 64), 0);
  plan.layers.assign(static_cast<size_t>(num_layers), layer);
  return plan;
}

int64_t MovedNeurons(const PlacementPlan& from, const PlacementPlan& to) {
  int64_t moved = 0;
  for (size_t l = 0; l < to.layers.size(); ++l) {
    for (size_t w = 0; w < to.layers[l].hot.size(); ++w) {
      const uint64_t before = l < from.layers.size() && w < from.layers[l].hot.size()
                                  ? from.layers[l].hot[w]
                                  : uint64_t{0};
      moved += std::popcount(before ^ to.layers[l].hot[w]);
    }
  }
  return moved;
}

bool Contains(const std::vector<int64_t>& epochs, int64_t epoch) {
  return std::find(epochs.begin(), epochs.end(), epoch) != epochs.end();
}

// The worker may come back; nothing says that the plan is bad.
bool IsAway(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
         absl::IsCancelled(status);
}

}  // namespace

PlanPublisher::PlanPublisher(PlanStore& store, WorkerPort& gpu, WorkerPort& cpu,
                             PlacementProfile profile, const PlanPublisherOptions& options,
                             const Clock& clock)
    : store_(store),
      gpu_{gpu},
      cpu_{cpu},
      profile_(std::move(profile)),
      options_(options),
      clock_(clock),
      // Sequence numbers grow over restarts.
      feed_(clock.WallUs(), PlacementPlan{.profile = "none", .solver = "built in"}) {}

PlanPublisher::~PlanPublisher() {
  {
    std::lock_guard lock(mu_);
    stop_ = true;
  }
  changed_.notify_all();
  gpu_.port.Cancel();
  cpu_.port.Cancel();
  if (thread_.joinable()) thread_.join();
}

absl::Status PlanPublisher::Start() {
  ISOTHERM_ASSIGN_OR_RETURN(term_, store_.ClaimTerm(1));
  ISOTHERM_ASSIGN_OR_RETURN(const std::optional<PlanRecord> interrupted, store_.Preparing());
  if (interrupted.has_value()) {
    ISOTHERM_RETURN_IF_ERROR(
        store_.MarkFailed(interrupted->plan.epoch, "interrupted by a restart"));
  }
  ISOTHERM_ASSIGN_OR_RETURN(live_, store_.Live());
  thread_ = std::thread([this] {
    ::pthread_setname_np(::pthread_self(), "publisher");
    Loop();
  });
  return absl::OkStatus();
}

std::string PlanPublisher::StartOptions() const {
  return absl::StrCat("budget=", options_.budget_bytes, " profile=", profile_.name);
}

bool PlanPublisher::settled() const {
  std::lock_guard lock(mu_);
  return settled_;
}

absl::StatusOr<PlanRecord> PlanPublisher::Live() {
  std::lock_guard lock(mu_);
  if (!live_.has_value()) {
    return absl::NotFoundError(
        "no plan is live yet: the workers are loading or away; epoch 0 serves, nothing is hot");
  }
  return *live_;
}

bool PlanPublisher::Loaded() const {
  return gpu_.description.has_value() && gpu_.description->load_progress >= 1 &&
         cpu_.description.has_value() && cpu_.description->load_progress >= 1;
}

void PlanPublisher::Loop() {
  std::unique_lock lock(mu_);
  while (!stop_) {
    while (!tasks_.empty() && !stop_) {
      const std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      Poll();
      task();
      lock.lock();
    }
    lock.unlock();
    Poll();
    lock.lock();
    changed_.wait_for(lock, options_.poll_every, [this] { return stop_ || !tasks_.empty(); });
  }
  // What still waits must not wait for ever.
  while (!tasks_.empty()) {
    const std::function<void()> task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task();
    lock.lock();
  }
}

void PlanPublisher::Poll() {
  for (Worker* worker : {&gpu_, &cpu_}) {
    absl::StatusOr<WorkerDescription> description = worker->port.Describe();
    if (description.ok()) {
      worker->description = *std::move(description);
      worker->told_away = false;
      continue;
    }
    worker->description.reset();
    if (!worker->told_away) {
      SPDLOG_INFO("waiting for the {}: {}", std::string(worker->port.name()),
                  std::string(description.status().message()));
      worker->told_away = true;
    }
  }
  absl::Status status;
  if (Loaded()) {
    const WorkerDescription& gpu = *gpu_.description;
    const bool fits = live_.has_value() && live_->plan.model_digest == gpu.model_digest &&
                      static_cast<int64_t>(live_->plan.layers.size()) == gpu.num_layers &&
                      live_->plan.used_bytes <= gpu.capacity_bytes &&
                      live_->start_options == StartOptions();
    if (gpu.model_digest != cpu_.description->model_digest) {
      status = absl::FailedPreconditionError("the two workers serve different models");
    } else if (!fits && !initial_failed_) {
      status = SolveAndPublish(options_.budget_bytes, PlacementCause::kInitial, std::nullopt);
      initial_failed_ = !status.ok() && !IsAway(status);
    }
  }
  if (status.ok() && live_.has_value()) status = Settle();
  const bool settled = status.ok() && live_.has_value() && announced_epoch_ == live_->plan.epoch &&
                       Loaded() && Contains(gpu_.description->epochs, announced_epoch_) &&
                       Contains(cpu_.description->epochs, announced_epoch_);
  if (!status.ok() && !IsAway(status)) {
    SPDLOG_ERROR("placement: {}", std::string(status.message()));
  }
  std::lock_guard lock(mu_);
  settled_ = settled;
}

absl::Status PlanPublisher::Phase(Worker& worker, PreparePhase phase, int64_t epoch,
                                  const PlacementPlan* plan) {
  const absl::StatusOr<uint64_t> checksum =
      worker.port.Run({.phase = phase,
                       .term = term_,
                       .epoch = epoch,
                       .plan = plan,
                       .stall_timeout = options_.stall_timeout});
  if (!checksum.ok()) return checksum.status();
  if (phase == PreparePhase::kPlan && *checksum != PlanChecksum(*plan)) {
    return absl::DataLossError(
        absl::StrCat("the ", worker.port.name(), " took another plan than was sent"));
  }
  return absl::OkStatus();
}

absl::Status PlanPublisher::Settle() {
  const int64_t epoch = live_->plan.epoch;
  bool everywhere = true;
  for (Worker* worker : {&gpu_, &cpu_}) {
    if (!worker->description.has_value() || worker->description->load_progress < 1) {
      everywhere = false;
      continue;
    }
    if (!Contains(worker->description->epochs, epoch)) {
      ISOTHERM_RETURN_IF_ERROR(Phase(*worker, PreparePhase::kPlan, epoch, &live_->plan));
      ISOTHERM_RETURN_IF_ERROR(Phase(*worker, PreparePhase::kCommit, epoch, nullptr));
      worker->description->epochs.push_back(epoch);
      SPDLOG_INFO("epoch {} is on the {}", epoch, std::string(worker->port.name()));
    }
  }
  if (!everywhere) return absl::OkStatus();
  if (announced_epoch_ != epoch) {
    PlacementPlan plan = live_->plan;
    for (LayerPlacement& layer : plan.layers) layer.hot.clear();
    feed_.Publish(plan, PlanState::kLive, "");
    announced_epoch_ = epoch;
    SPDLOG_INFO("epoch {} is live: {} hot, {:.1f} % of activations expected", epoch,
                FormatBytes(plan.used_bytes), plan.objective * 100);
  }
  for (Worker* worker : {&gpu_, &cpu_}) {
    std::vector<int64_t>& epochs = worker->description->epochs;
    const std::vector<int64_t> old = epochs;
    for (const int64_t other : old) {
      if (other == epoch || other == 0) continue;
      ISOTHERM_RETURN_IF_ERROR(Phase(*worker, PreparePhase::kRetire, other, nullptr));
      std::erase(epochs, other);
      if (worker == &gpu_) feed_.Publish({.epoch = other}, PlanState::kRetired, "");
    }
  }
  return absl::OkStatus();
}

absl::Status PlanPublisher::SolveAndPublish(int64_t requested_bytes, PlacementCause cause,
                                            const std::optional<ControlRequest>& request) {
  const WorkerDescription& gpu = *gpu_.description;
  const bool known = !profile_.frequency.empty();
  if (known) ISOTHERM_RETURN_IF_ERROR(CheckProfileShape(profile_, gpu.num_layers, gpu.num_neurons));
  const int64_t budget = requested_bytes == kAutoBudget
                             ? gpu.capacity_bytes
                             : std::min(requested_bytes, gpu.capacity_bytes);
  SolveInput input{.frequency = profile_.frequency, .budget_bytes = budget};
  input.layers.assign(static_cast<size_t>(gpu.num_layers),
                      {.num_neurons = gpu.num_neurons, .bundle_bytes = gpu.bundle_bytes});
  PlanRecord record;
  ISOTHERM_ASSIGN_OR_RETURN(record.plan, SolvePlacement(input));
  record.plan.cause = cause;
  record.plan.profile = known ? profile_.name : "even";
  record.requested_bytes = requested_bytes;
  return Publish(std::move(record), request);
}

absl::Status PlanPublisher::Publish(PlanRecord record,
                                    const std::optional<ControlRequest>& request) {
  ISOTHERM_ASSIGN_OR_RETURN(int64_t epoch, store_.NewestEpoch());
  // A worker may know epochs of a store that was thrown away.
  for (const Worker* worker : {&gpu_, &cpu_}) {
    for (const int64_t known : worker->description->epochs) epoch = std::max(epoch, known);
  }
  PlacementPlan& plan = record.plan;
  plan.epoch = ++epoch;
  plan.model_digest = gpu_.description->model_digest;
  plan.created_unix_ms = clock_.WallUs() / 1000;
  plan.etag = absl::StrCat(absl::Hex(PlanChecksum(plan), absl::kZeroPad16), "-", epoch);
  record.start_options = StartOptions();
  record.moved_neurons = MovedNeurons(live_.has_value() ? live_->plan : PlacementPlan(), plan);
  std::optional<ControlRequest> answered = request;
  if (answered.has_value()) answered->epoch = epoch;
  ISOTHERM_RETURN_IF_ERROR(store_.InsertPreparing(record, answered));

  absl::Status status;
  for (Worker* worker : {&gpu_, &cpu_}) {
    if (status.ok()) status = Phase(*worker, PreparePhase::kPlan, epoch, &plan);
  }
  if (status.ok()) status = store_.MarkLive(epoch);  // the decision
  if (!status.ok()) {
    if (const absl::Status marked = store_.MarkFailed(epoch, status.message()); !marked.ok()) {
      SPDLOG_ERROR("epoch {} stays marked as preparing: {}", epoch, std::string(marked.message()));
    }
    for (Worker* worker : {&gpu_, &cpu_}) {
      if (const absl::Status aborted = Phase(*worker, PreparePhase::kAbort, epoch, nullptr);
          !aborted.ok()) {
        SPDLOG_WARN("the {} may still hold epoch {}: {}", std::string(worker->port.name()), epoch,
                    std::string(aborted.message()));
      }
    }
    return status;
  }
  record.state = PlanState::kLive;
  {
    std::lock_guard lock(mu_);
    live_ = std::move(record);
  }
  return Settle();
}

absl::Status PlanPublisher::RunOnThread(std::function<absl::Status()> task) {
  std::promise<absl::Status> done;
  {
    std::lock_guard lock(mu_);
    if (stop_) return absl::UnavailableError("the placement service is stopping");
    tasks_.push_back([&] {
      bool stopping;
      {
        std::lock_guard inner(mu_);
        stopping = stop_;
      }
      done.set_value(stopping ? absl::UnavailableError("the placement service is stopping")
                              : task());
    });
  }
  changed_.notify_all();
  return done.get_future().get();
}

absl::Status PlanPublisher::CheckEtag(const std::string& if_etag) {
  const std::string etag = live_.has_value() ? live_->plan.etag : "";
  if (if_etag.empty() || if_etag == etag) return absl::OkStatus();
  return WithErrorReason(
      absl::FailedPreconditionError(absl::StrCat("the live plan is '", etag, "', not '", if_etag,
                                                 "': look at it again and repeat")),
      {.reason = "ETAG_MISMATCH", .field = "if_etag"});
}

absl::StatusOr<std::optional<PlanRecord>> PlanPublisher::Answered(const std::string& request_id,
                                                                  const std::string& fingerprint) {
  if (request_id.empty()) return std::optional<PlanRecord>();
  ISOTHERM_ASSIGN_OR_RETURN(const std::optional<ControlRequest> before,
                            store_.FindRequest(request_id));
  if (!before.has_value()) return std::optional<PlanRecord>();
  if (before->fingerprint != fingerprint) {
    return WithErrorReason(
        absl::InvalidArgumentError(absl::StrCat("request_id '", request_id, "' was used for '",
                                                before->fingerprint, "'; take a new one")),
        {.reason = "INVALID_VALUE", .field = "request_id"});
  }
  ISOTHERM_ASSIGN_OR_RETURN(PlanRecord record, store_.Get(before->epoch, /*bitmaps=*/false));
  if (record.state == PlanState::kFailed) {
    return absl::FailedPreconditionError(
        absl::StrCat("the operation failed before: ", record.message));
  }
  return std::optional<PlanRecord>(std::move(record));
}

absl::StatusOr<BudgetOutcome> PlanPublisher::SetBudget(const std::string& request_id, int64_t bytes,
                                                       const std::string& if_etag) {
  if (bytes < 0) {
    return WithErrorReason(
        absl::InvalidArgumentError(absl::StrCat("a budget of ", bytes, " bytes; 0 or more wanted")),
        {.reason = "INVALID_VALUE", .field = "bytes"});
  }
  BudgetOutcome outcome{.requested_bytes = bytes};
  ISOTHERM_RETURN_IF_ERROR(RunOnThread([&]() -> absl::Status {
    const std::string fingerprint = absl::StrCat("SetBudget ", bytes);
    ISOTHERM_ASSIGN_OR_RETURN(std::optional<PlanRecord> before, Answered(request_id, fingerprint));
    if (!before.has_value()) {
      ISOTHERM_RETURN_IF_ERROR(CheckEtag(if_etag));
      if (!Loaded())
        return absl::UnavailableError("a worker is away or loading; try again when both are ready");
      std::optional<ControlRequest> request;
      if (!request_id.empty())
        request = ControlRequest{.request_id = request_id, .fingerprint = fingerprint};
      ISOTHERM_RETURN_IF_ERROR(SolveAndPublish(bytes, PlacementCause::kBudget, request));
      before = live_;
    }
    outcome.record = *std::move(before);
    outcome.effective_bytes = outcome.record.plan.budget_bytes;
    return absl::OkStatus();
  }));
  return outcome;
}

absl::StatusOr<PlanRecord> PlanPublisher::Rollback(const std::string& request_id, int64_t to_epoch,
                                                   const std::string& if_etag) {
  PlanRecord out;
  ISOTHERM_RETURN_IF_ERROR(RunOnThread([&]() -> absl::Status {
    const std::string fingerprint = absl::StrCat("Rollback ", to_epoch);
    ISOTHERM_ASSIGN_OR_RETURN(std::optional<PlanRecord> before, Answered(request_id, fingerprint));
    if (!before.has_value()) {
      ISOTHERM_RETURN_IF_ERROR(CheckEtag(if_etag));
      if (!Loaded())
        return absl::UnavailableError("a worker is away or loading; try again when both are ready");
      const WorkerDescription& gpu = *gpu_.description;
      PlanRecord record{.plan = BuiltInPlan(gpu.model_digest, gpu.num_layers, gpu.num_neurons)};
      if (to_epoch != 0) {
        ISOTHERM_ASSIGN_OR_RETURN(record, store_.Get(to_epoch, /*bitmaps=*/true));
        if (record.state == PlanState::kFailed || record.plan.model_digest != gpu.model_digest) {
          return absl::FailedPreconditionError(
              absl::StrCat("epoch ", to_epoch, " never was live on this model"));
        }
      }
      record.plan.cause = PlacementCause::kRollback;
      record.plan.from_epoch = to_epoch;
      record.state = PlanState::kPreparing;
      record.message.clear();
      std::optional<ControlRequest> request;
      if (!request_id.empty())
        request = ControlRequest{.request_id = request_id, .fingerprint = fingerprint};
      ISOTHERM_RETURN_IF_ERROR(Publish(std::move(record), request));
      before = live_;
    }
    out = *std::move(before);
    return absl::OkStatus();
  }));
  return out;
}

}  // namespace isotherm
