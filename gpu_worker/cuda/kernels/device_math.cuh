#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "gpu_worker/cuda/kernels/step_data.h"

// Device functions that several kernels share.
namespace isotherm::gpu {

inline constexpr int kWarp = 32;

__device__ inline uint64_t GlobalTimer() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

__device__ inline uint64_t LoadAcquireSystem(const void* at) {
  uint64_t value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
  return value;
}
__device__ inline uint32_t LoadSystem32(const void* at) {
  uint32_t value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
  return value;
}
__device__ inline void StoreReleaseSystem(void* at, uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
}

// A count of layers that one block raises after what it announces, and others wait for before they
// read that, all on this device. One thread each.
__device__ inline void AnnounceLayers(uint32_t* count, uint32_t layers) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(count), "r"(layers) : "memory");
}
__device__ inline void AwaitLayers(const uint32_t* count, uint32_t layers) {
  uint32_t now = 0;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(count) : "memory");
  } while (now < layers);
}

// Early launch (LaunchEarly of product.cuh): a kernel's blocks may begin while the kernel before it
// in the stream still runs, once all of that one's blocks have called LetNextBegin or ended. Until
// AwaitPrevious returns, which every block calls even if it has nothing to do, a kernel reads
// weights and the step's inputs alone and writes nothing; then all that came before is done and
// visible. (One block does more, and says why: WaitingBlock of merge.cu.)
__device__ inline void LetNextBegin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ inline void AwaitPrevious() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The work hash; the same functions as common/kernels/work_hash.h.
__device__ inline uint64_t HashMix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}
__device__ inline uint64_t HashLayerSeed(uint64_t epoch, uint64_t layer) {
  return HashMix(HashMix(epoch + 0x9e3779b97f4a7c15u) ^ (layer + 0xd1b54a32d192ed03u));
}
__device__ inline uint64_t HashNeuron(uint64_t layer_seed, uint64_t neuron) {
  return HashMix(layer_seed + (neuron + 1) * 0x9e3779b97f4a7c15u);
}

template <typename T>
__device__ inline T WarpSum(T value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// Sum over the block's threads, to all of them. `scratch`: 32 elements of shared memory.
template <typename T>
__device__ inline T BlockSum(T value, T* scratch) {
  value = WarpSum(value);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = (static_cast<int>(blockDim.x) + kWarp - 1) / kWarp;
  if (threadIdx.x % kWarp == 0) scratch[warp] = value;
  __syncthreads();
  T total = T();
  for (int w = 0; w < warps; ++w) total += scratch[w];
  __syncthreads();
  return total;
}

// Rounds to the model's 16-bit type and back.
__device__ inline float Round16(float value, bool bf16) {
  return bf16 ? __bfloat162float(__float2bfloat16_rn(value)) : __half2float(__float2half_rn(value));
}
__device__ inline uint16_t Bits16(float value, bool bf16) {
  return bf16 ? __bfloat16_as_ushort(__float2bfloat16_rn(value))
              : __half_as_ushort(__float2half_rn(value));
}
__device__ inline float From16(uint16_t bits, bool bf16) {
  return bf16 ? __bfloat162float(__ushort_as_bfloat16(bits)) : __half2float(__ushort_as_half(bits));
}

}  // namespace isotherm::gpu
