#include "tests/gpu_worker/cuda/fault_kernels.h"

namespace isotherm::gpu {
namespace {

__global__ void BadWriteKernel(int* nowhere) { *nowhere = 1; }

__device__ unsigned long long Nanoseconds() {
  unsigned long long now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}

__global__ void SpinKernel(unsigned long long ns) {
  const unsigned long long start = Nanoseconds();
  while (Nanoseconds() - start < ns) {
  }
}

}  // namespace

void LaunchBadWrite(cudaStream_t stream) {
  BadWriteKernel<<<1, 1, 0, stream>>>(reinterpret_cast<int*>(64));
}

void LaunchSpin(double seconds, cudaStream_t stream) {
  SpinKernel<<<1, 1, 0, stream>>>(static_cast<unsigned long long>(seconds * 1e9));
}

}  // namespace isotherm::gpu
