#include <cstring>

#include "bench/probe/cuda/cuda_figures.h"
#include "bench/probe/cuda/cuda_util.h"
#include "bench/probe/cuda/host_memory.h"
#include "bench/probe/test_memory.h"

namespace isotherm::probe {
namespace {

constexpr int64_t kBytes = int64_t{1} << 30;

void Measure(const char* memory, void* host, void* device, int64_t piece_bytes) {
  const auto run = [&](cudaMemcpyKind kind) {
    return DeviceSeconds(nullptr, [&] {
      for (int64_t at = 0; at + piece_bytes <= kBytes; at += piece_bytes) {
        char* const h = static_cast<char*>(host) + at;
        char* const d = static_cast<char*>(device) + at;
        PROBE_CUDA(kind == cudaMemcpyHostToDevice
                       ? cudaMemcpyAsync(d, h, static_cast<size_t>(piece_bytes), kind, nullptr)
                       : cudaMemcpyAsync(h, d, static_cast<size_t>(piece_bytes), kind, nullptr));
      }
    });
  };
  const double moved = static_cast<double>(kBytes / piece_bytes * piece_bytes) / 1e9;
  run(cudaMemcpyHostToDevice);
  const double to = moved / run(cudaMemcpyHostToDevice);
  // What came back must be what went: the host's copy is destroyed in between.
  std::memset(host, 0, static_cast<size_t>(kBytes / piece_bytes * piece_bytes));
  const double from = moved / run(cudaMemcpyDeviceToHost);
  const auto* const words = static_cast<const uint64_t*>(host);
  bool right = true;
  for (int64_t b = 0; b < kBytes / piece_bytes * piece_bytes / kBlockBytes; ++b) {
    right &=
        words[b * kBlockWords] == BlockWord(b) && words[(b + 1) * kBlockWords - 1] == BlockWord(b);
  }
  Line line("host_copy");
  line.Set("memory", memory).Set("piece_bytes", piece_bytes);
  if (!right) {
    line.Set("error", "the bytes changed");
    return;
  }
  line.Set("to_device_gb_s", to).Set("to_host_gb_s", from);
}

void BothWays(void* host, void* device) {
  cudaStream_t up, down;
  PROBE_CUDA(cudaStreamCreateWithFlags(&up, cudaStreamNonBlocking));
  PROBE_CUDA(cudaStreamCreateWithFlags(&down, cudaStreamNonBlocking));
  const auto half = static_cast<size_t>(kBytes / 2);
  char* const h = static_cast<char*>(host);
  char* const d = static_cast<char*>(device);
  cudaEvent_t other;
  PROBE_CUDA(cudaEventCreate(&other));
  const double seconds = DeviceSeconds(up, [&] {
    PROBE_CUDA(cudaMemcpyAsync(d, h, half, cudaMemcpyHostToDevice, up));
    PROBE_CUDA(cudaMemcpyAsync(h + half, d + half, half, cudaMemcpyDeviceToHost, down));
    PROBE_CUDA(cudaEventRecord(other, down));
    PROBE_CUDA(cudaStreamWaitEvent(up, other));
  });
  Line("host_copy").Set("both_ways_gb_s", static_cast<double>(kBytes) / 1e9 / seconds);
}

}  // namespace

void HostCopy() {
  SleepingWaits();
  char* const device = DeviceArray<char>(kBytes);
  const TestMemory memory({.kind = TestMemory::Kind::kSealedMemfd, .bytes = kBytes});
  RegisteredMemory(memory);
  for (const int64_t piece : {int64_t{24} << 20, kBytes}) {
    Measure("registered memfd", memory.data(), device, piece);
  }
  void* pinned = nullptr;
  PROBE_CUDA(cudaHostAlloc(&pinned, kBytes, cudaHostAllocDefault));
  std::memcpy(pinned, memory.data(), kBytes);
  Measure("cudaHostAlloc", pinned, device, kBytes);
  BothWays(pinned, device);
}

}  // namespace isotherm::probe
