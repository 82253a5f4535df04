#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/base/clock.h"
#include "placement_service/plan/gain_recorder.h"
#include "placement_service/plan/plan_feed.h"
#include "placement_service/plan/plan_record.h"
#include "placement_service/plan/plan_store.h"
#include "placement_service/plan/profile_keeper.h"
#include "placement_service/plan/recomputations.h"
#include "placement_service/plan/worker_view.h"
#include "placement_service/policy/auto_mover.h"
#include "placement_service/profile/placement_profile.h"
#include "placement_service/telemetry/traffic_model.h"

namespace isotherm {

// What plans are solved for. kAuto: measured times on a GPU; bytes on the host backend, whose hot
// neurons are computed by the same cores as the cold ones.
enum class PlanObjective { kAuto, kBytes, kTime };

struct PublisherOptions {
  int64_t requested_bytes = kAutoBudget;
  // A start under other options than the live plan's solves anew.
  std::string start_options;
  bool follow = true;  // moves neurons by itself
  PlanObjective objective = PlanObjective::kAuto;
  AutoMoverOptions mover;
  // A change that gets no further for so long fails, and the old plan stays live.
  std::chrono::milliseconds stall_timeout{60'000};
  // How long one round waits for steps that still name an epoch to be retired.
  std::chrono::milliseconds retire_timeout{1'000};
};

struct WorkerMemory {
  std::string device;
  DeviceMemoryUse use;
};

struct RollbackParams {
  std::string request_id;  // empty: not idempotent
  int64_t to_epoch = 0;
  std::string if_etag;  // of the live plan; empty: any
};

struct BudgetParams {
  std::string request_id;
  int64_t bytes = 0;
  std::string if_etag;
  std::string instance_id;  // of the gpu_worker meant; empty: the one there is
};

struct PinParams {
  std::string request_id;
  bool pinned = false;
  std::string if_etag;
};

struct RecomputeParams {
  std::string request_id;  // empty: one is made up
  bool dry_run = false;
  std::optional<int64_t> budget_bytes;
  std::chrono::microseconds time_limit{0};  // 0: none
  std::string if_etag;
};

struct ImportPlanParams {
  std::string request_id;
  bool dry_run = false;
  std::string source;
  std::string if_etag;
  std::vector<LayerPlacement> layers;
};

struct ImportProfileParams {
  std::string request_id;
  std::string name;
  double tokens = 0;  // 0: the service's default
  std::vector<std::vector<float>> predicted, fired;
};

// The plan that answers a control operation, live (or retired since, when an id is repeated), or
// why there is none. Called exactly once, by the publisher's thread or Stop(); must not block.
using ControlDone = std::function<void(const absl::StatusOr<PlanRecord>&)>;

// Decides which plan is to be live and drives it there: intent to the store, plan and checksum on
// both workers, commit on both, live in the store, announced on the feed, old epochs retired. All
// state is in the store and the workers, so a crash between any two of these steps leaves all-old
// or all-new, and the next start goes on with what it finds. A worker that restarted gets the live
// plan again; one that is away is waited for while the other serves on; one that refuses a new plan
// leaves the old one live. Aborted by a worker means that another placement_service with a higher
// term took over: this one then changes nothing any more.
//
// A gpu_worker with little room beside its hot neurons is led to a plan in several epochs: each
// brings as many as fit and lets twice as many go, so that the next has twice the room.
//
// One thread calls RunOnce(); everything else is thread-safe. The store, ports, traffic model and
// clock outlive it.
class PlanPublisher {
 public:
  // `cpu` may be null. Reads the store and claims a term; an unwritable store is a notice on the
  // feed, not an error: the live plan is served and restored all the same. `profile` becomes the
  // traffic model's prior.
  static absl::StatusOr<std::unique_ptr<PlanPublisher>> Create(
      const PublisherOptions& options, PlanStore& store, WorkerPort& gpu, WorkerPort* cpu,
      PlacementProfile profile, TrafficModel& traffic, const Clock& clock);

  // One round: asks the workers how they are and does all that can be done. Blocks on workers and
  // disk. An error is final (exit code 65: the profile is another model's).
  absl::Status RunOnce();
  // Rounds until Stop() or a final error: one each `poll_interval`, at once for a control
  // operation and soon on the way to a plan. Calls `on_settled` once, when a plan is live or the
  // first one failed. Saves what was learnt at the end.
  absl::Status Run(std::chrono::milliseconds poll_interval,
                   const std::function<void()>& on_settled);
  // Ends Run() and calls to workers; control operations fail with Unavailable from now on.
  void Stop();
  ~PlanPublisher();

  // Publishes the contents of a plan that was live once as a new epoch, with its budget.
  void Rollback(RollbackParams params, ControlDone done);
  // Solves anew for at most `bytes` of hot bundles; the gpu_worker's capacity clips it.
  void SetBudget(BudgetParams params, ControlDone done);
  // While pinned the live plan stays as it is: nothing moves by itself, and what would change it
  // is refused. A gpu_worker that no longer has room for it gets another all the same.
  void SetPin(PinParams params, ControlDone done);
  // Starts learning over from a profile of the model's shape.
  void ImportProfile(ImportProfileParams params, ControlDone done);

  // Return at once. Asked again with the same id they tell how far it is. FailedPrecondition:
  // another one runs, or the live plan is not the one meant.
  absl::StatusOr<RecomputationRecord> Recompute(RecomputeParams params);
  absl::StatusOr<RecomputationRecord> ImportPlan(ImportPlanParams params);

  // Epoch 0 is the live plan; before there is one, the built-in plan.
  absl::StatusOr<PlanRecord> Get(int64_t epoch, bool bitmaps);
  absl::StatusOr<std::vector<PlanRecord>> History(int64_t before, int64_t limit) {
    return store_.History(before, limit);
  }
  PlanFeed& feed() { return *feed_; }
  TrafficModel& traffic() { return traffic_; }
  // The gpu_worker's, as it said last; nothing while it is away or does not say.
  std::optional<WorkerMemory> Memory() const;
  bool pinned() const;
  // What stands between now and a live plan on all workers; empty: nothing.
  std::string blocked_by() const;
  // That, or why neurons move or stay.
  std::string status() const;

 private:
  // What is to be known of the model before anything can be planned.
  struct Facts {
    ModelShape shape;
    std::string gpu_instance_id;
    int64_t capacity_bytes = 0;
    std::string device;
  };
  struct Control {
    enum class Kind { kRollback, kBudget, kPin, kImportProfile, kRecompute, kImportPlan };
    Kind kind = Kind::kBudget;
    std::string request_id, fingerprint, if_etag;
    int64_t to_epoch = 0, bytes = 0;
    std::string instance_id;
    bool pinned = false;
    ImportProfileParams profile;
    // kRecompute and kImportPlan: `done` is empty, the registry has the answer.
    bool dry_run = false;
    std::optional<int64_t> budget_bytes;
    std::optional<Clock::TimePoint> deadline;
    std::string source;
    std::vector<LayerPlacement> layers;
    ControlDone done;
  };
  // A plan that the gpu_worker is led to in several epochs.
  struct Goal {
    PlanRecord record;
    std::optional<ControlRequest> request;
    int step = 0;
  };

  PlanPublisher(const PublisherOptions& options, PlanStore& store, WorkerPort& gpu, WorkerPort* cpu,
                PlacementProfile profile, TrafficModel& traffic, const Clock& clock);

  // plan_publisher.cc: what a round knows, and whether it needs a plan.
  absl::Status LearnFacts();
  bool WorkersAgree();
  void PlanIfNeeded();
  bool MayGrow(const PlanRecord& live) const;
  const PlanRecord* UsableLive() const;  // null: there is none for this model
  bool Settled() const;
  PlanRecord BuiltIn() const;
  void ShowLive();
  void FinishWaiters(const absl::StatusOr<PlanRecord>& result);
  void Fence(const absl::Status& status);
  void Block(const std::string& reason);
  void Notify(const PlacementPlan& plan, PlanState state, const std::string& notice);

  // plan_migration.cc: one plan's way to being live. Begin() sets pending_ (and goal_, where it
  // takes several epochs), each round's AdvancePending() goes on with it, GoLive() or FailPending()
  // ends it.
  absl::Status Begin(PlanRecord record, std::optional<ControlRequest> request);
  absl::Status BeginStep(PlanRecord record, const std::optional<ControlRequest>& request);
  absl::Status ContinueGoal();
  void AdvancePending();
  void GoLive();
  void FailPending(const absl::Status& status);
  void Refused(const absl::Status& status);
  void RestoreLive();
  void RetireExtras();
  bool RetireOn(WorkerView& worker);
  int64_t NextEpoch();
  int64_t SpareBytes() const;  // -1: the gpu_worker is away or does not say
  // For what `next` brings in beside `live`: with a larger budget comes memory. -1: not told.
  int64_t RoomFor(const PlacementPlan& next, const PlacementPlan& live) const;

  // plan_control.cc: what operators ask for.
  void Enqueue(Control control);
  void RunControls();
  void RunControl(Control control);
  absl::StatusOr<PlanRecord> PlanFor(const Control& control);
  absl::StatusOr<PlanRecord> RollbackPlan(int64_t to_epoch);
  absl::Status CheckControl(const Control& control) const;
  absl::Status CheckEtag(absl::string_view if_etag, absl::string_view etag) const;
  bool AnswerRepeated(Control& control);
  absl::Status ApplyPin(const Control& control);
  absl::Status ApplyProfile(const Control& control);
  static absl::Status StoppingStatus();

  // plan_moves_control.cc: which neurons move, because of the traffic or when asked to recompute.
  absl::StatusOr<PlanRecord> Solve(int64_t requested_bytes, PlacementCause cause,
                                   const PlanRecord* live);
  void FollowTraffic();
  void RecordGain();
  absl::StatusOr<RecomputationRecord> EnqueueRecomputation(Control control);
  void RunRecomputation(Control control);
  absl::StatusOr<MoveDecision> Decide(const Control& control, const PlanRecord* live);
  absl::StatusOr<MoveDecision> DecideImport(const Control& control, const PlanRecord* live);
  MoveInput MoveInputFor(int64_t budget_bytes, const PlanRecord* live,
                         const TrafficEstimate& estimate) const;
  std::vector<LayerGeometry> Geometry() const;

  const PublisherOptions options_;
  PlanStore& store_;
  const PlacementProfile profile_;
  TrafficModel& traffic_;
  const Clock& clock_;
  int64_t term_ = 0;
  std::unique_ptr<PlanFeed> feed_;
  std::unique_ptr<Recomputations> recomputations_;

  // The publisher thread's own.
  WorkerView gpu_;
  std::vector<WorkerView*> workers_;  // gpu_ first
  std::unique_ptr<WorkerView> cpu_;
  std::vector<WorkerPort*> ports_;
  std::optional<PlanRecord> pending_;
  Clock::TimePoint pending_since_;
  std::optional<Clock::TimePoint> pending_deadline_;  // asked for by whoever wants it
  std::optional<absl::Status> doomed_;  // pending_ failed, the store does not know yet
  std::optional<Goal> goal_;            // pending_ is a step towards it
  std::vector<ControlDone> waiters_;    // for goal_, or for pending_
  std::string copying_id_;              // of the recomputation whose plan is pending_
  std::shared_ptr<const PlanRecord> live_;
  bool options_changed_ = false;
  bool fenced_ = false;
  std::string round_blocked_;  // the first reason of this round
  std::string last_notice_;    // said once
  int failures_ = 0;           // of plans nobody asked for, in a row
  Clock::TimePoint next_plan_at_;
  std::string planned_for_instance_;
  AutoMover mover_;
  GainRecorder gains_;
  ProfileKeeper keeper_;

  std::optional<Facts> facts_;

  mutable absl::Mutex mu_;
  std::deque<Control> controls_ ABSL_GUARDED_BY(mu_);
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  std::shared_ptr<const PlanRecord> shown_ ABSL_GUARDED_BY(mu_);  // what Get(0) answers
  std::string blocked_by_ ABSL_GUARDED_BY(mu_), move_status_ ABSL_GUARDED_BY(mu_);
  bool pinned_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<WorkerMemory> memory_ ABSL_GUARDED_BY(mu_);
};

}  // namespace isotherm
