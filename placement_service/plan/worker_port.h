#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/step/device_memory_use.h"
#include "common/step/placement_plan.h"

namespace isotherm {

// What a worker says of itself.
struct WorkerDescription {
  std::string instance_id;  // new at each start
  std::string model_digest;
  uint64_t layout_hash = 0;
  int64_t capacity_bytes = 0;   // gpu_worker: of the hot pool
  std::vector<int64_t> epochs;  // prepared and not retired
  int64_t committed_epoch = 0;  // the newest that steps may name
  double load_progress = 0;     // 1: loaded; before, the numbers below may be 0
  int64_t num_layers = 0;
  int64_t num_neurons = 0;   // of a layer
  int64_t bundle_bytes = 0;  // of a neuron
  int32_t bundle_rows = 3;
  int64_t spare_bytes = -1;  // gpu_worker: room beside what is hot in any epoch; -1: not said
  std::string device;        // gpu_worker: "cpu" is the host backend
  DeviceMemoryUse memory;    // gpu_worker
};

// kPlan copies, kCommit lets steps name the epoch, kAbort forgets an epoch that was not committed,
// kRetire frees one that was, once no step names it. Each may be repeated without further effect.
enum class PreparePhase { kPlan, kCommit, kAbort, kRetire };

struct PhaseRequest {
  PreparePhase phase = PreparePhase::kPlan;
  int64_t term = 0;
  int64_t epoch = 0;
  const PlacementPlan* plan = nullptr;                        // of kPlan, with bitmaps
  std::chrono::milliseconds stall_timeout{};                  // without progress
  std::function<void(int64_t done, int64_t total)> progress;  // of kPlan, bytes; may be empty
};

// One worker as the publisher sees it. Describe and Run are called by one thread and block.
class WorkerPort {
 public:
  virtual ~WorkerPort() = default;
  virtual absl::string_view name() const = 0;  // "gpu_worker"
  virtual absl::StatusOr<WorkerDescription> Describe() = 0;
  // Returns when the phase is done, with the worker's PlanChecksum of kPlan (0 of the others).
  // Unavailable, DeadlineExceeded, Cancelled: the worker is away or slow, whether the phase took
  // effect is not known. Aborted: another placement_service has a higher term, or published a newer
  // epoch. Anything else: the worker refused, nothing took effect.
  virtual absl::StatusOr<uint64_t> Run(const PhaseRequest& request) = 0;
  // Ends the call under way and makes later ones fail with Cancelled. From any thread.
  virtual void Cancel() = 0;
};

}  // namespace isotherm
