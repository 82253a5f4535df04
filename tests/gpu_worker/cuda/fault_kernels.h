#pragma once

#include <cuda_runtime_api.h>

namespace isotherm::gpu {

// Writes to an address that nobody has: a sticky error for the whole context.
void LaunchBadWrite(cudaStream_t stream);
// Spins for so long, whatever happens.
void LaunchSpin(double seconds, cudaStream_t stream);

}  // namespace isotherm::gpu
