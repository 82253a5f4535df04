#pragma once

#include <functional>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "placement_service/plan/worker_port.h"

namespace isotherm {

// A worker and what it said last. Used by the publisher's thread.
class WorkerView {
 public:
  explicit WorkerView(WorkerPort& port) : port_(port) {}

  // Describes again. A worker that does not answer, still loads or sends impossible numbers is
  // absent; a change is logged once.
  void Refresh();

  bool present() const { return description_.has_value(); }
  const WorkerDescription& description() const { return *description_; }
  absl::string_view name() const { return port_.name(); }
  const std::string& absent_reason() const { return absent_reason_; }

  bool Holds(int64_t epoch) const;
  bool Committed(int64_t epoch) const;

  // Runs one phase and notes its effect in description(). DataLoss when the checksum of a plan is
  // wrong twice after it was aborted and sent again. A worker that stopped answering is absent
  // until the next Refresh().
  absl::Status Plan(const PlacementPlan& plan, int64_t term, std::chrono::milliseconds timeout,
                    const std::function<void(int64_t, int64_t)>& progress = {});
  absl::Status Run(PreparePhase phase, int64_t epoch, int64_t term,
                   std::chrono::milliseconds timeout);

 private:
  absl::Status NoteAbsence(absl::Status status);

  WorkerPort& port_;
  std::optional<WorkerDescription> description_;
  std::string absent_reason_ = "not asked yet";
  bool seen_ = false;  // was present once
};

// Whether the worker is away or slow, rather than refusing.
bool IsTransient(const absl::Status& status);

}  // namespace isotherm
