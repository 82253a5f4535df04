#pragma once

#include "bench/probe/cuda/cuda_util.h"
#include "bench/probe/test_memory.h"

namespace isotherm::probe {

// The arena's kind of memory, registered for the device for the life of the process's figure.
inline const uint64_t* RegisteredMemory(const TestMemory& memory) {
  if (memory.data() == nullptr) Fail("no host memory: " + memory.error());
  PROBE_CUDA(cudaHostRegister(memory.data(), static_cast<size_t>(memory.bytes()),
                              cudaHostRegisterMapped | cudaHostRegisterPortable));
  void* device = nullptr;
  PROBE_CUDA(cudaHostGetDevicePointer(&device, memory.data(), 0));
  return static_cast<const uint64_t*>(device);
}

}  // namespace isotherm::probe
