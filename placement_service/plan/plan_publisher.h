#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/clock.h"
#include "placement_service/plan/plan_feed.h"
#include "placement_service/plan/plan_record.h"
#include "placement_service/plan/plan_store.h"
#include "placement_service/plan/worker_port.h"
#include "placement_service/profile/placement_profile.h"

namespace isotherm {

struct PlanPublisherOptions {
  int64_t budget_bytes = kAutoBudget;
  std::chrono::milliseconds poll_every{100};  // how soon a restarted worker is noticed
  std::chrono::milliseconds stall_timeout{60'000};
};

// What SetBudget did.
struct BudgetOutcome {
  int64_t requested_bytes = 0;
  int64_t effective_bytes = 0;  // no more than the gpu_worker has
  PlanRecord record;
};

// Owns the live plan: makes the first one, brings each plan to both workers, and brings the live
// one to a worker that was restarted.
//
// A plan is inserted as an intent, prepared on both workers, decided by marking it live in the
// store, then committed on both, and only then announced; the one before it is retired last. A
// crash before the decision leaves the old plan live, after it the new one: at the next start the
// live plan is prepared and committed again wherever it is missing. Epoch 0 serves meanwhile.
//
// One thread ("publisher") talks to the workers; operations wait for it. Thread-safe.
class PlanPublisher {
 public:
  PlanPublisher(PlanStore& store, WorkerPort& gpu, WorkerPort& cpu, PlacementProfile profile,
                const PlanPublisherOptions& options, const Clock& clock);
  ~PlanPublisher();

  // Claims a term, marks an interrupted plan as failed, starts the thread.
  absl::Status Start();

  // Both block until the plan is live on both workers, or say why it is not; the old one then
  // stays. FailedPrecondition: `if_etag` is not the live plan's. InvalidArgument: the id stands for
  // another operation.
  absl::StatusOr<BudgetOutcome> SetBudget(const std::string& request_id, int64_t bytes,
                                          const std::string& if_etag);
  absl::StatusOr<PlanRecord> Rollback(const std::string& request_id, int64_t to_epoch,
                                      const std::string& if_etag);

  // The live plan with bitmaps; NotFound before there is one.
  absl::StatusOr<PlanRecord> Live();
  PlanFeed& feed() { return feed_; }
  // The live plan is committed on both workers.
  bool settled() const;

 private:
  struct Worker {
    WorkerPort& port;
    std::optional<WorkerDescription> description;  // of the last poll; none: away
    bool told_away = false;
  };
  void Loop();
  void Poll();
  absl::Status RunOnThread(std::function<absl::Status()> task);
  bool Loaded() const;
  absl::Status CheckEtag(const std::string& if_etag);
  absl::StatusOr<std::optional<PlanRecord>> Answered(const std::string& request_id,
                                                     const std::string& fingerprint);
  std::string StartOptions() const;
  absl::Status SolveAndPublish(int64_t requested_bytes, PlacementCause cause,
                               const std::optional<ControlRequest>& request);
  absl::Status Publish(PlanRecord record, const std::optional<ControlRequest>& request);
  // Prepares and commits the live plan where it is missing, then announces it and retires others.
  absl::Status Settle();
  absl::Status Phase(Worker& worker, PreparePhase phase, int64_t epoch, const PlacementPlan* plan);

  PlanStore& store_;
  Worker gpu_, cpu_;
  const PlacementProfile profile_;
  const PlanPublisherOptions options_;
  const Clock& clock_;
  PlanFeed feed_;
  int64_t term_ = 0;
  std::optional<PlanRecord> live_;  // publisher thread, but read under mu_
  int64_t announced_epoch_ = 0;
  bool initial_failed_ = false;  // the first plan was refused: do not solve again in a loop

  mutable std::mutex mu_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  bool stop_ = false;
  bool settled_ = false;
  std::thread thread_;
};

}  // namespace isotherm
