#include "placement_service/plan/plan_publisher.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/base/checked_math.h"
#include "common/base/status_macros.h"
#include "common/process/log.h"
#include "placement_service/plan/plan_codec.h"

namespace isotherm {
namespace {

// Attempts at a plan nobody asked for, before a worker restarts or an operator changes something.
constexpr int kMaxFailures = 5;
// Between the epochs that lead to one plan.
constexpr std::chrono::milliseconds kStepInterval{50};

// Sequences grow over restarts because terms do.
int64_t FirstSequence(int64_t term) {
  return std::min(term, int64_t{1} << 52) * (int64_t{1} << 10);
}

}  // namespace

PlanPublisher::PlanPublisher(const PublisherOptions& options, PlanStore& store, WorkerPort& gpu,
                             WorkerPort* cpu, PlacementProfile profile, TrafficModel& traffic,
                             const Clock& clock)
    : options_(options),
      store_(store),
      profile_(std::move(profile)),
      traffic_(traffic),
      clock_(clock),
      gpu_(gpu),
      workers_{&gpu_},
      ports_{&gpu},
      mover_(options.mover, traffic, clock),
      gains_(traffic),
      keeper_(store, traffic, clock) {
  traffic_.SetPrior(profile_.name, profile_.frequency, {}, 0);
  if (cpu != nullptr) {
    cpu_ = std::make_unique<WorkerView>(*cpu);
    workers_.push_back(cpu_.get());
    ports_.push_back(cpu);
  }
}

absl::StatusOr<std::unique_ptr<PlanPublisher>> PlanPublisher::Create(
    const PublisherOptions& options, PlanStore& store, WorkerPort& gpu, WorkerPort* cpu,
    PlacementProfile profile, TrafficModel& traffic, const Clock& clock) {
  std::unique_ptr<PlanPublisher> self(
      new PlanPublisher(options, store, gpu, cpu, std::move(profile), traffic, clock));
  // The wall clock as the least term: a service that lost its store, or has another, still comes
  // after those started before. Microseconds, as two with one term would undo each other's plans
  // for ever. The store keeps terms growing when the clock goes back.
  absl::StatusOr<int64_t> term = store.ClaimTerm(clock.WallUs());
  std::string notice;
  if (!term.ok()) {
    if (store.read_only_reason().empty()) return term.status();
    notice = absl::StrCat("the plan store is read-only: ", store.read_only_reason());
    // The store is ours alone, so nobody else has this term.
    term = store.LastTerm();
  }
  ISOTHERM_ASSIGN_OR_RETURN(self->term_, std::move(term));
  ISOTHERM_ASSIGN_OR_RETURN(std::optional<PlanRecord> live, store.Live());
  ISOTHERM_ASSIGN_OR_RETURN(self->pending_, store.Preparing());
  self->pending_since_ = clock.Now();
  if (live.has_value()) {
    self->options_changed_ = live->start_options != options.start_options;
    self->live_ = std::make_shared<const PlanRecord>(*std::move(live));
  }
  ISOTHERM_ASSIGN_OR_RETURN(const std::optional<std::string> pinned,
                            store.GetSetting(kPinnedSetting));
  const PlanRecord shown = self->live_ != nullptr ? *self->live_ : self->BuiltIn();
  self->feed_ = std::make_unique<PlanFeed>(FirstSequence(self->term_), shown.plan);
  self->recomputations_ = std::make_unique<Recomputations>(store, *self->feed_);
  {
    absl::MutexLock lock(&self->mu_);
    self->shown_ = std::make_shared<const PlanRecord>(shown);
    self->pinned_ = pinned == "1";
  }
  if (!notice.empty()) self->Notify(shown.plan, PlanState::kLive, notice);
  return self;
}

absl::Status PlanPublisher::RunOnce() {
  for (WorkerView* worker : workers_) worker->Refresh();
  round_blocked_ = fenced_ ? last_notice_ : "";
  bool agree = false;
  if (!fenced_) {
    ISOTHERM_RETURN_IF_ERROR(LearnFacts());
    agree = WorkersAgree();
    if (doomed_.has_value()) FailPending(*doomed_);
    if (agree && !fenced_) RestoreLive();
    if (agree && !fenced_ && !pending_.has_value()) PlanIfNeeded();
  }
  RunControls();
  if (agree && !fenced_ && !pending_.has_value() && !goal_.has_value()) FollowTraffic();
  if (!fenced_ && pending_.has_value() && !doomed_.has_value() && WorkersAgree()) AdvancePending();
  if (!fenced_) RetireExtras();
  RecordGain();
  keeper_.SaveIfDue();
  if (round_blocked_.empty()) last_notice_.clear();
  absl::MutexLock lock(&mu_);
  blocked_by_ = round_blocked_;
  move_status_ = pinned_           ? "pinned: the live plan stays as it is"
                 : options_.follow ? mover_.status()
                                   : "neurons do not follow the traffic (--follow off)";
  return absl::OkStatus();
}

PlanPublisher::~PlanPublisher() { Stop(); }

absl::Status PlanPublisher::Run(std::chrono::milliseconds poll_interval,
                                const std::function<void()>& on_settled) {
  absl::Status status;
  bool stopped = false, settled = false;
  while (!stopped && status.ok()) {
    status = RunOnce();
    if (!settled && status.ok() && Settled()) {
      settled = true;
      on_settled();
    }
    absl::MutexLock lock(&mu_);
    const auto work = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return stopped_ || !controls_.empty();
    };
    const bool soon = goal_.has_value() || !settled;
    const auto wait = soon ? std::min(poll_interval, kStepInterval) : poll_interval;
    if (status.ok()) mu_.AwaitWithTimeout(absl::Condition(&work), absl::FromChrono(wait));
    stopped = stopped_;
  }
  Stop();
  FinishWaiters(StoppingStatus());
  keeper_.Save();
  return status;
}

absl::Status PlanPublisher::LearnFacts() {
  {
    std::optional<WorkerMemory> memory;
    if (gpu_.present() && gpu_.description().memory != DeviceMemoryUse{}) {
      memory = {gpu_.description().device, gpu_.description().memory};
    }
    absl::MutexLock lock(&mu_);
    memory_ = std::move(memory);
  }
  // A worker that is away for a moment is still the one that counted what it reports.
  if (gpu_.present() && (cpu_ == nullptr || cpu_->present())) {
    traffic_.SetWorkers(gpu_.description().instance_id,
                        cpu_ == nullptr ? "" : cpu_->description().instance_id);
  }
  if (!gpu_.present()) return absl::OkStatus();
  const WorkerDescription& gpu = gpu_.description();
  ISOTHERM_RETURN_IF_ERROR(CheckProfileShape(profile_, gpu.num_layers, gpu.num_neurons));
  const Facts facts{.shape = {.digest = gpu.model_digest,
                              .num_layers = gpu.num_layers,
                              .num_neurons = gpu.num_neurons,
                              .bundle_bytes = gpu.bundle_bytes,
                              .bundle_rows = gpu.bundle_rows},
                    .gpu_instance_id = gpu.instance_id,
                    .capacity_bytes = gpu.capacity_bytes,
                    .device = gpu.device};
  const bool news = !facts_.has_value() || facts_->gpu_instance_id != facts.gpu_instance_id;
  facts_ = facts;
  if (!news) return absl::OkStatus();
  traffic_.SetModel(facts.shape, keeper_.Load());
  if (UsableLive() != nullptr) {
    traffic_.SetLive(live_->plan);
  } else {
    absl::MutexLock lock(&mu_);
    shown_ = std::make_shared<const PlanRecord>(BuiltIn());
  }
  return absl::OkStatus();
}

bool PlanPublisher::WorkersAgree() {
  if (!facts_.has_value()) {
    Block(absl::StrCat("waiting for ", gpu_.name(), ": ", gpu_.absent_reason()));
    return false;
  }
  if (cpu_ == nullptr || !cpu_->present() || !gpu_.present()) return true;
  const WorkerDescription& gpu = gpu_.description();
  const WorkerDescription& cpu = cpu_->description();
  if (gpu.model_digest == cpu.model_digest && gpu.layout_hash == cpu.layout_hash) return true;
  Block(absl::StrCat("the workers serve different models: ", gpu_.name(), " ", gpu.model_digest,
                     ", ", cpu_->name(), " ", cpu.model_digest, "; start both with the same file"));
  return false;
}

bool PlanPublisher::Settled() const {
  return UsableLive() != nullptr || failures_ > 0 || doomed_.has_value() || fenced_;
}

const PlanRecord* PlanPublisher::UsableLive() const {
  if (live_ == nullptr || !facts_.has_value()) return nullptr;
  const PlacementPlan& plan = live_->plan;
  const bool fits =
      plan.model_digest == facts_->shape.digest &&
      static_cast<int64_t>(plan.layers.size()) == facts_->shape.num_layers &&
      std::all_of(plan.layers.begin(), plan.layers.end(), [&](const LayerPlacement& layer) {
        return layer.num_neurons == facts_->shape.num_neurons;
      });
  return fits ? live_.get() : nullptr;
}

PlanRecord PlanPublisher::BuiltIn() const {
  PlanRecord record;
  record.state = PlanState::kLive;
  record.plan.profile = "none";
  record.plan.solver = "built-in";
  if (facts_.has_value()) {
    const ModelShape& shape = facts_->shape;
    record.plan.model_digest = shape.digest;
    const LayerPlacement layer{
        .hot = std::vector<uint64_t>(static_cast<size_t>(CeilDiv(shape.num_neurons, 64)), 0),
        .num_neurons = shape.num_neurons};
    record.plan.layers.assign(static_cast<size_t>(shape.num_layers), layer);
  }
  record.plan.etag = PlanEtag(record.plan);
  return record;
}

void PlanPublisher::PlanIfNeeded() {
  if (!gpu_.present()) return;
  if (goal_.has_value()) {
    const absl::Status status = ContinueGoal();
    if (!status.ok()) FinishWaiters(status);
    return;
  }
  if (planned_for_instance_ != facts_->gpu_instance_id) {
    planned_for_instance_ = facts_->gpu_instance_id;
    failures_ = 0;
    next_plan_at_ = Clock::TimePoint();
  }
  const PlanRecord* live = UsableLive();
  absl::StatusOr<PlanRecord> record = absl::InternalError("");
  if (live == nullptr || options_changed_) {
    record = Solve(options_.requested_bytes, PlacementCause::kInitial, nullptr);
  } else if (live->plan.used_bytes > facts_->capacity_bytes || MayGrow(*live)) {
    record = Solve(live->requested_bytes, PlacementCause::kBudget, live);
  } else if (std::any_of(workers_.begin(), workers_.end(), [&](const WorkerView* worker) {
               return worker->present() && !worker->Holds(live->plan.epoch) &&
                      worker->description().committed_epoch > live->plan.epoch;
             })) {
    // A worker went on to epochs this store never saw, say it was restored from a backup: epochs
    // must not go back, so the contents come again under a newer one.
    record = *live;
    record->plan.from_epoch = live->plan.epoch;
    record->reason = "workers went on without this service";
  } else {
    return;
  }
  if (failures_ >= kMaxFailures || clock_.Now() < next_plan_at_) {
    Block("the last plan was refused");
    return;
  }
  absl::Status status = record.status();
  if (status.ok()) status = Begin(*std::move(record), std::nullopt);
  if (!status.ok()) Refused(status);
}

// The gpu_worker has more room than the plan was made for, and more was asked for. An old plan's
// budget and a pinned plan stay as they are.
bool PlanPublisher::MayGrow(const PlanRecord& live) const {
  if (pinned() || live.plan.cause == PlacementCause::kRollback) return false;
  const int64_t wanted = live.requested_bytes == kAutoBudget
                             ? facts_->capacity_bytes
                             : std::min(live.requested_bytes, facts_->capacity_bytes);
  return wanted > live.plan.budget_bytes;
}

void PlanPublisher::ShowLive() {
  absl::MutexLock lock(&mu_);
  shown_ = live_;
}

void PlanPublisher::FinishWaiters(const absl::StatusOr<PlanRecord>& result) {
  pending_deadline_.reset();
  copying_id_.clear();
  for (const ControlDone& done : std::exchange(waiters_, {})) done(result);
}

void PlanPublisher::Fence(const absl::Status& status) {
  fenced_ = true;
  const std::string notice =
      absl::StrCat("another placement_service took over; restart this one to take over again (",
                   status.message(), ")");
  round_blocked_ = notice;
  Notify(live_ != nullptr ? live_->plan : BuiltIn().plan, PlanState::kLive, notice);
  goal_.reset();
  FinishWaiters(absl::FailedPreconditionError(notice));
  pending_.reset();
}

void PlanPublisher::Block(const std::string& reason) {
  if (round_blocked_.empty()) round_blocked_ = reason;
}

// To the log and to watchers, once until there is another notice or all is well again.
void PlanPublisher::Notify(const PlacementPlan& plan, PlanState state, const std::string& notice) {
  if (notice == last_notice_) return;
  last_notice_ = notice;
  LogError("{}", notice);
  feed_->Publish(plan, state, notice);
}

std::string PlanPublisher::blocked_by() const {
  absl::MutexLock lock(&mu_);
  return blocked_by_;
}

std::string PlanPublisher::status() const {
  absl::MutexLock lock(&mu_);
  return blocked_by_.empty() ? move_status_ : blocked_by_;
}

std::optional<WorkerMemory> PlanPublisher::Memory() const {
  absl::MutexLock lock(&mu_);
  return memory_;
}

bool PlanPublisher::pinned() const {
  absl::MutexLock lock(&mu_);
  return pinned_;
}

absl::StatusOr<PlanRecord> PlanPublisher::Get(int64_t epoch, bool bitmaps) {
  if (epoch != 0) return store_.Get(epoch, bitmaps);
  std::shared_ptr<const PlanRecord> shown;
  {
    absl::MutexLock lock(&mu_);
    shown = shown_;
  }
  PlanRecord record = *shown;
  if (!bitmaps) {
    for (LayerPlacement& layer : record.plan.layers) layer.hot.clear();
  }
  return record;
}

}  // namespace isotherm
