#pragma once

#include <chrono>

#include "common/threading/futex.h"

namespace isotherm::threading_internal {

// Spins until `done()` or until `limit` has passed; returns the last done().
// The clock is read every 16th round: a read costs about as much as a pause.
template <typename Done>
bool SpinUntil(std::chrono::nanoseconds limit, const Done& done) {
  if (done()) return true;
  if (limit.count() <= 0) return false;
  const auto end = std::chrono::steady_clock::now() + limit;
  do {
    for (int i = 0; i < 16; ++i) {
      CpuRelax();
      if (done()) return true;
    }
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

}  // namespace isotherm::threading_internal
