#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/shm/control_region.h"
#include "common/shm/doorbell.h"
#include "common/shm/slot_messages.h"

namespace isotherm::shm {

// The cpu side of a ring of layer slots: Next, compute, Finish, in the order posted. One thread
// uses it; Abort, aborted and WakeSelf may be called by any. The region outlives it.
class SlotServer {
 public:
  // device_rings: the posts come from a device that cannot wake a sleeper.
  static absl::StatusOr<std::unique_ptr<SlotServer>> Create(ControlRegion& region,
                                                            const WaitOptions& options = {},
                                                            bool device_rings = false);

  // The next post; it must be finished before the next call. DeadlineExceeded: none came, call
  // again. Unavailable: the gpu side died or left. Internal: it posted what no sound peer posts.
  // After the last two the attachment is over.
  absl::StatusOr<ColdLayerWork> Next(TimePoint deadline);

  // How long the next Next() spins before it sleeps: not at all once one has waited in vain, so
  // that an idle server takes no time of its core.
  std::chrono::microseconds next_spin() const {
    return idle_ ? std::chrono::microseconds(0) : spin_;
  }

  // Gives the slot back. work.partial must be complete for kDone. The post that ends a step is
  // finished too. FailedPrecondition unless `work` is what Next returned last.
  absl::Status Finish(const ColdLayerWork& work, const ColdLayerOutcome& outcome);

  void Abort() { bell_.Abort(); }
  bool aborted() const { return bell_.aborted(); }
  void WakeSelf() { bell_.WakeSelf(); }

  const ControlGeometry& geometry() const { return region_.geometry(); }
  uint64_t hash_nonce() const { return region_.nonce().low; }

 private:
  SlotServer(ControlRegion& region, const WaitOptions& options, bool device_rings);
  absl::Status CheckRequest(const RequestFields& fields) const;

  ControlRegion& region_;
  Doorbell bell_;
  uint64_t next_sequence_;
  const std::chrono::microseconds spin_;
  bool idle_ = false;  // the last Next() waited in vain
  bool taken_ = false;
  std::vector<uint64_t> active_;   // [max_rows, words_per_row]
  std::vector<int32_t> row_keys_;  // [max_rows], and one more for the copy by 64-bit words
};

}  // namespace isotherm::shm
