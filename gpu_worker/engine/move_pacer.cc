#include "gpu_worker/engine/move_pacer.h"

#include <algorithm>

namespace isotherm::gpu {

MovePacer::MovePacer(int64_t bytes_per_second, const Clock& clock)
    : bytes_per_second_(bytes_per_second), clock_(clock), next_at_(clock.Now()) {}

std::chrono::nanoseconds MovePacer::Delay(int64_t done, bool steps_run) {
  const Clock::TimePoint now = clock_.Now();
  const int64_t copied = std::max<int64_t>(0, done - last_done_);
  last_done_ = std::max(last_done_, done);
  if (bytes_per_second_ <= 0 || !steps_run) {
    next_at_ = now;
    return std::chrono::nanoseconds(0);
  }
  const std::chrono::duration<double> cost(static_cast<double>(copied) /
                                           static_cast<double>(bytes_per_second_));
  next_at_ += std::chrono::duration_cast<Clock::TimePoint::duration>(cost);
  if (next_at_ < now) next_at_ = now;
  return next_at_ - now;
}

}  // namespace isotherm::gpu
