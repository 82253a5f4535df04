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

// The gpu side of a ring of layer slots. Per layer: BeginPost, fill the buffers, Commit, compute
// the hot share, Wait. One thread uses it; Abort, aborted, WakeSelf and dropped may be called by
// any. The region outlives it.
//
// After Unavailable or Internal the attachment is over: Abort() it, and attach anew. After
// DeadlineExceeded the post is given up; later posts work, and its result is never read.
class SlotClient {
 public:
  static absl::StatusOr<std::unique_ptr<SlotClient>> Create(ControlRegion& region,
                                                            const WaitOptions& options = {});

  // Room for the next post. InvalidArgument unless 1 <= num_rows <= max_rows; DeadlineExceeded when
  // the cpu side frees no slot in time; Unavailable when the attachment is over.
  absl::StatusOr<PostBuffers> BeginPost(int32_t num_rows, TimePoint deadline);

  // Hands the buffers of BeginPost over and rings. header.num_rows is that of BeginPost.
  // FailedPrecondition without a BeginPost; InvalidArgument for numbers out of the region's shape.
  absl::Status Commit(const ColdLayerHeader& header);

  // The result of the last Commit. DeadlineExceeded; Unavailable: the peer died or left; Aborted:
  // the cpu side does not know the epoch, or a cancelled post; Internal: the peer failed or sent
  // what no sound peer sends (wrong length, values that are not finite).
  absl::StatusOr<ColdLayerResult> Wait(TimePoint deadline);

  // Tells the cpu side that no layer of the step follows. No answer comes.
  absl::Status PostEndOfStep(int64_t step_id, int64_t epoch, int32_t attempt, TimePoint deadline);

  // Posts up to the last one need no computing any more.
  void CancelPosted();

  void Abort() { bell_.Abort(); }
  bool aborted() const { return bell_.aborted(); }
  void WakeSelf() { bell_.WakeSelf(); }

  // Results that were not those of the awaited post and were ignored.
  int64_t dropped() const { return dropped_.load(std::memory_order_relaxed); }

  // For a device that fills, rings and reads the slots itself, by the rules of control_layout.h:
  // the sequence of its first post, and after its step the one of the next. Between the two nothing
  // else posts. Such a device cannot wake a peer that sleeps: RingSleeper does, called again and
  // again.
  uint64_t next_sequence() const { return next_sequence_; }
  void Resume(uint64_t next_sequence) { next_sequence_ = next_sequence; }
  void RingSleeper();
  // Waits until the cpu side has answered every post, so that all slots are free.
  absl::Status AwaitIdle(TimePoint deadline);
  ControlRegion& region() const { return region_; }

  const ControlGeometry& geometry() const { return region_.geometry(); }
  // Low half of the attachment's nonce: the one that work hashes are keyed with.
  uint64_t hash_nonce() const { return region_.nonce().low; }

 private:
  SlotClient(ControlRegion& region, const WaitOptions& options);
  absl::Status AwaitFree(TimePoint deadline);
  void Publish(const ColdLayerHeader& header);
  // Counts a result that is not the awaited one, once for each time it is published.
  void Drop(uint64_t observed_sequence);
  absl::StatusOr<ColdLayerResult> Accept(const ResultFields& fields, bool was_ready);

  ControlRegion& region_;
  Doorbell bell_;
  uint64_t next_sequence_;
  int32_t begun_rows_ = 0;  // of an open BeginPost
  bool awaiting_ = false;   // a Commit has not been waited for
  uint64_t awaited_sequence_ = 0;
  ColdLayerHeader awaited_;
  uint64_t last_dropped_ = 0;
  uint32_t last_dropped_bell_ = 0;
  std::vector<float> partial_;  // [max_rows, model_dim]
  std::atomic<int64_t> dropped_{0};
};

}  // namespace isotherm::shm
