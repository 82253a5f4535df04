#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

#include "common/base/clock.h"

namespace isotherm::gpu {

struct KvLeaseOptions {
  int64_t budget_bytes = 0;  // of KV pages and hot neurons together
  int64_t page_bytes = 0;
  int32_t floor_pages = 0;  // always there: one sequence of the whole context
  int32_t most_pages = 0;
  int64_t hot_floor_bytes = 0;  // never lent
  int32_t chunk_pages = 16;     // what is lent at a time
  // Pages that nobody wanted for so long go back to the hot neurons.
  std::chrono::milliseconds hold{30'000};
};

// The rule by which KV pages and hot neurons share memory. Requests come first: pages that they
// want beyond the floor are lent by the hot neurons, as far as those keep theirs. A page is usable
// once the hot neurons have left its bytes, so the two together never take more than the budget. It
// comes back when it was not wanted for a while and the gateway names it no more. Used under the
// engine's lock.
class KvLease {
 public:
  explicit KvLease(const KvLeaseOptions& options);

  // The gateway wants so many pages, and names none from `top` on; nor did it know of fewer than
  // `top` when it said so.
  void OnDemand(int32_t wanted, int32_t top);
  // Now and then, with what hot neurons take.
  void Update(int64_t hot_used_bytes, Clock::TimePoint now);

  int32_t pages() const { return pages_; }  // the gateway may name those below
  int32_t most_pages() const { return most_; }
  int64_t hot_capacity_bytes() const;
  // Those below may have something in them.
  int32_t pages_taken() const;

 private:
  int32_t Target() const;

  const KvLeaseOptions options_;
  const int32_t most_;  // that leave the hot neurons theirs
  int32_t wanted_ = 0, top_ = 0;
  int32_t goal_, pages_;
  // Since when less than the goal is wanted, and the most of it since then.
  std::optional<Clock::TimePoint> less_since_;
  int32_t most_since_ = 0;
};

}  // namespace isotherm::gpu
