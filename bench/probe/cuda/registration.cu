#include <sys/mman.h>

#include <chrono>

#include "bench/probe/cuda/cuda_figures.h"
#include "bench/probe/cuda/cuda_util.h"
#include "bench/probe/cuda/host_memory.h"
#include "bench/probe/test_memory.h"

namespace isotherm::probe {
namespace {

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Sum of all words, each block of threads taking its share.
__global__ void SumHostWords(const uint64_t* words, int64_t count, unsigned long long* sum) {
  unsigned long long own = 0;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    own += words[i];
  }
  atomicAdd(sum, own);
}

// Registers [data, data + bytes), lets the GPU read all of it, unregisters.
void Try(const char* what, void* data, int64_t bytes, unsigned flags, const char* flag_name,
         uint64_t expected) {
  Line line("registration");
  line.Set("memory", what).Set("flags", flag_name).Set("bytes", bytes);
  const double gb = static_cast<double>(bytes) / 1e9;
  const auto start = std::chrono::steady_clock::now();
  const cudaError_t error = cudaHostRegister(data, static_cast<size_t>(bytes), flags);
  line.Set("answer", cudaGetErrorString(error));
  if (error != cudaSuccess) {
    cudaGetLastError();
    return;
  }
  line.Set("register_s_per_gb", SecondsSince(start) / gb);
  void* device = nullptr;
  PROBE_CUDA(cudaHostGetDevicePointer(&device, data, 0));
  unsigned long long* const sum = DeviceArray<unsigned long long>(1);
  PROBE_CUDA(cudaMemset(sum, 0, sizeof(*sum)));
  const double read_s = DeviceSeconds(nullptr, [&] {
    SumHostWords<<<64, 512>>>(static_cast<const uint64_t*>(device), bytes / 8, sum);
  });
  PROBE_CUDA(cudaGetLastError());
  if (CopyToHost(sum, 1)[0] != expected) line.Set("error", "the GPU read something else");
  line.Set("gpu_read_gb_s", gb / read_s).Set("same_address", device == data);
  const auto end_start = std::chrono::steady_clock::now();
  PROBE_CUDA(cudaHostUnregister(data));
  line.Set("unregister_s_per_gb", SecondsSince(end_start) / gb);
  PROBE_CUDA(cudaFree(sum));
}

void TryFlags(const char* what, void* data, int64_t bytes, uint64_t expected) {
  Try(what, data, bytes, cudaHostRegisterMapped | cudaHostRegisterPortable, "mapped", expected);
  Try(what, data, bytes,
      cudaHostRegisterMapped | cudaHostRegisterPortable | cudaHostRegisterReadOnly,
      "mapped, read-only", expected);
}

// A second mapping of the memory's file.
void* MapAgain(const TestMemory& memory, int protection) {
  void* const data =
      ::mmap(nullptr, static_cast<size_t>(memory.bytes()), protection, MAP_SHARED, memory.fd(), 0);
  return data == MAP_FAILED ? nullptr : data;
}

void TryMemory(const std::string& name, const TestMemory& memory) {
  if (memory.data() == nullptr) {
    Line("registration").Set("memory", name).Set("error", memory.error());
    return;
  }
  const int64_t bytes = memory.bytes();
  const uint64_t expected = BlocksSum(0, bytes / kBlockBytes);
  TryFlags((name + ", written through").c_str(), memory.data(), bytes, expected);
  if (void* const again = MapAgain(memory, PROT_READ | PROT_WRITE); again != nullptr) {
    TryFlags((name + ", another writable mapping").c_str(), again, bytes, expected);
    // As the gpu_worker does: register, then take the right to write away and read on.
    const cudaError_t error =
        cudaHostRegister(again, static_cast<size_t>(bytes), cudaHostRegisterMapped);
    if (error == cudaSuccess) {
      const bool protect = ::mprotect(again, static_cast<size_t>(bytes), PROT_READ) == 0;
      unsigned long long* const sum = DeviceArray<unsigned long long>(1);
      PROBE_CUDA(cudaMemset(sum, 0, sizeof(*sum)));
      void* device = nullptr;
      PROBE_CUDA(cudaHostGetDevicePointer(&device, again, 0));
      SumHostWords<<<64, 512>>>(static_cast<const uint64_t*>(device), bytes / 8, sum);
      PROBE_CUDA(cudaDeviceSynchronize());
      Line("registration")
          .Set("memory", name + ", made read-only after registration")
          .Set("mprotect", protect)
          .Set("right", CopyToHost(sum, 1)[0] == expected);
      PROBE_CUDA(cudaHostUnregister(again));
      PROBE_CUDA(cudaFree(sum));
    }
    cudaGetLastError();
    ::munmap(again, static_cast<size_t>(bytes));
  }
  if (void* const again = MapAgain(memory, PROT_READ); again != nullptr) {
    TryFlags((name + ", read-only mapping").c_str(), again, bytes, expected);
    ::munmap(again, static_cast<size_t>(bytes));
  }
}

}  // namespace

void Registration() {
  SleepingWaits();
  int read_only = 0;
  PROBE_CUDA(cudaDeviceGetAttribute(&read_only, cudaDevAttrHostRegisterReadOnlySupported, 0));
  Line("registration").Set("read_only_supported", read_only != 0);
  using Kind = TestMemory::Kind;
  {
    const TestMemory memory({.kind = Kind::kSealedMemfd, .bytes = int64_t{2} << 30});
    TryMemory("sealed memfd", memory);
  }
  {
    const TestMemory memory(
        {.kind = Kind::kSealedMemfd, .bytes = int64_t{2} << 30, .collapse = true});
    TryMemory("sealed memfd in 2 MiB pages", memory);
  }
  {
    const TestMemory memory(
        {.kind = Kind::kFile, .bytes = int64_t{1} << 30, .directory = "/dev/shm"});
    TryMemory("file in /dev/shm", memory);
  }
  const char* const directory = std::getenv("TMPDIR");
  const TestMemory memory({.kind = Kind::kFile,
                           .bytes = int64_t{256} << 20,
                           .directory = directory != nullptr ? directory : "/tmp"});
  TryMemory("file on disk", memory);
}

}  // namespace isotherm::probe
