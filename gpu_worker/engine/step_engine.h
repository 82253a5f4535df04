#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/step/step.h"
#include "gpu_worker/device.h"
#include "gpu_worker/engine/cold_attachment.h"
#include "gpu_worker/engine/kv_lease.h"
#include "gpu_worker/engine/sequence_table.h"

namespace isotherm::gpu {

// Where a gateway's results go. Called on the engine thread; must not block.
class StepSink {
 public:
  virtual ~StepSink() = default;
  virtual void OnHello(const WorkerHello& hello) = 0;
  virtual void OnResult(const StepResult& result) = 0;
  // Cold neurons can no longer be computed: no cpu_worker and no arena. The last call.
  virtual void OnUnavailable(const absl::Status& why) = 0;
};

struct StepEngineOptions {
  std::string instance_id;
  std::string model_digest;
  int64_t context_length = 0;
  std::chrono::microseconds default_deadline{30'000'000};
  // Absent: KV pages and hot neurons keep what they have.
  std::optional<KvLeaseOptions> kv_lease;
  int64_t move_bytes_per_second = 0;  // of a migration while steps run; 0: as fast as it goes
  // The device reported an error that it does not recover from. Called on the engine thread instead
  // of reporting the step's failure, or by who called Prepare, Retire or AbortPlan.
  std::function<void()> on_device_lost;
};

// Runs StepRequests one after the other on its own thread ("step-engine"), and grants on its own
// account, whose next step the device may begin early. At most two requests wait; a newer one ends
// the running grant at the next step boundary, or at the one behind it if that step has begun.
// One gateway at a time: a new sink replaces the old one, whose sequences and queue are dropped.
//
// Thread-safe. The device is used by the engine thread for steps and by callers of Prepare and
// Retire.
class StepEngine {
 public:
  StepEngine(Device& device, const StepEngineOptions& options);
  ~StepEngine();

  // The sink gets a hello as soon as every neuron can be computed, and at each change. Returns the
  // connection's number.
  int64_t Connect(std::shared_ptr<StepSink> sink);
  // Drops what the connection queued; its running step ends, its sequences are forgotten.
  void Disconnect(int64_t connection);
  // ResourceExhausted when two requests wait already.
  absl::Status Submit(int64_t connection, StepRequest request);
  void Abort(int64_t connection);
  // Counts once the steps submitted before have ended.
  void SetKvDemand(int64_t connection, const KvDemand& demand);

  // Takes effect at the next step boundary. Null: no cpu_worker; a dead attachment may stay for its
  // arena. Fails, and the old one stays, when the device cannot reach the attachment's memory.
  absl::Status SetCold(std::shared_ptr<ColdAttachment> cold);

  absl::Status Prepare(const PlacementPlan& plan,
                       const std::function<void(int64_t, int64_t)>& progress);
  absl::Status Commit(int64_t epoch);
  // Announces it as gone at once; steps under it that were sent before the gateway heard of that
  // are still run, within half a second, and its grants end. Blocks until no queued or running step
  // names the epoch, then frees it.
  absl::Status Retire(int64_t epoch);
  // Forgets a prepared epoch that was not committed.
  absl::Status AbortPlan(int64_t epoch);

  WorkerHello Hello() const;
  // True when no step is running or queued.
  bool idle() const;

 private:
  // An attachment and what makes it reachable for the device, which goes first.
  struct Cold {
    std::shared_ptr<ColdAttachment> attachment;
    std::shared_ptr<void> mapping;
  };
  struct Pending {
    int64_t connection;
    StepRequest request;
  };
  // What the rows of one sequence did so far in a step.
  struct StepRowOrder {
    int32_t last_position = -1;
    bool sampled = false;
  };
  void Loop();
  absl::StatusOr<Sequence*> CheckRow(const StepRow& row, StepRowOrder* order);
  void Run(Pending pending, std::unique_lock<std::mutex>& lock);
  // `ahead`: the step behind it may begin before it has ended, and *begun says whether it did.
  StepResult RunOne(const StepRequest& request, int64_t step_id, const std::vector<StepRow>& rows,
                    const Cold& cold, bool ahead, std::vector<StepRow>* next, bool* begun);
  // The rows behind `rows`, all of which sample; none when one of them lacks a page.
  std::vector<DeviceRow> RowsBehind(std::span<const DeviceRow> rows) const;
  // Of a call of the device: whether it was its last is looked into when it failed.
  absl::Status Judged(absl::Status status);
  WorkerHello HelloLocked() const;
  bool PeerAliveLocked() const;
  // Some way to compute cold neurons is there.
  bool UsableLocked() const;
  void AnnounceLocked();
  // Between steps: pages and capacity follow the demand and what is hot.
  void UpdateLeaseLocked();
  void DropDemandLocked();

  Device& device_;
  const StepEngineOptions options_;

  mutable std::mutex mu_;
  std::condition_variable changed_;
  std::deque<Pending> queue_;
  bool running_ = false;
  int64_t running_epoch_ = 0;
  bool stop_ = false;
  bool abort_ = false;
  int64_t connection_ = 0;
  int64_t cleared_connection_ = 0;  // whose sequences the table holds
  std::shared_ptr<StepSink> sink_;
  Cold cold_;
  std::optional<KvLease> lease_;
  std::optional<KvDemand> demand_;  // not counted yet
  size_t demand_after_ = 0;         // so many queued or running requests
  std::set<int64_t> committed_ = {kBuiltInEpoch};
  std::set<int64_t> retiring_;            // of those
  int64_t newest_epoch_ = kBuiltInEpoch;  // of the connection's last request
  bool greeted_ = false;                  // the sink had a hello
  bool peer_announced_ = false;           // what it said of the cpu_worker

  SequenceTable sequences_;  // engine thread only
  std::thread thread_;       // declared last: joined before what it uses goes
};

}  // namespace isotherm::gpu
