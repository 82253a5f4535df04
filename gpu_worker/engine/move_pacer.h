#pragma once

#include <chrono>
#include <cstdint>

#include "common/base/clock.h"

namespace isotherm::gpu {

// Keeps the copies of one migration to a rate while steps run, so that they leave the memory bus to
// the steps. Used by one thread.
class MovePacer {
 public:
  // 0: no limit.
  MovePacer(int64_t bytes_per_second, const Clock& clock);

  // `done` bytes of the migration are copied: how long to wait before the next. Nothing while no
  // step runs; time that passed is not saved up for later.
  std::chrono::nanoseconds Delay(int64_t done, bool steps_run);

 private:
  const int64_t bytes_per_second_;
  const Clock& clock_;
  int64_t last_done_ = 0;
  Clock::TimePoint next_at_;
};

}  // namespace isotherm::gpu
