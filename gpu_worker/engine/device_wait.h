#pragma once

#include <immintrin.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "common/base/exit_code.h"
#include "gpu_worker/engine/cold_side.h"

namespace isotherm::gpu {

// Kernels end by themselves at a step's deadline; a device that is still busy so much later hangs.
inline constexpr std::chrono::milliseconds kHangGrace{250};

// Spins until `busy` says no, and calls `meanwhile` each time it says yes. A device that hangs ends
// the process with exit code 70: nothing can be freed or awaited any more, and whoever supervises
// it starts a new one.
template <typename Busy, typename Meanwhile>
void AwaitDevice(TimePoint deadline, const Busy& busy, const Meanwhile& meanwhile) {
  while (busy()) {
    meanwhile();
    if (std::chrono::steady_clock::now() > deadline + kHangGrace) {
      std::fprintf(stderr, "isotherm-gpu-worker: the GPU did not finish a step by its deadline\n");
      ::_exit(static_cast<int>(ExitCode::kInternal));
    }
    for (int i = 0; i < 32; ++i) _mm_pause();
  }
}

}  // namespace isotherm::gpu
