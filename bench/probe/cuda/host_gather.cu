#include <atomic>
#include <thread>

#include "bench/probe/cuda/cuda_figures.h"
#include "bench/probe/cuda/cuda_util.h"
#include "bench/probe/cuda/host_memory.h"
#include "bench/probe/pinned_threads.h"
#include "bench/probe/timed_reads.h"

namespace isotherm::probe {
namespace {

constexpr int kThreads = 256;

__device__ int64_t NowNs() {
  int64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// Each block reads random whole bundles of 16-byte words until the time is over. sums and bundles
// read, by block, let the host check what came.
template <int kVecsPerThread>
__global__ void GatherBundles(const ulonglong2* memory, int64_t num_bundles, int64_t limit_ns,
                              uint64_t* sums, uint64_t* ids_sums, int64_t* counts) {
  __shared__ bool more;
  const int64_t start = NowNs();
  uint64_t random = 0x9e3779b97f4a7c15u * (blockIdx.x + 1);
  uint64_t sum = 0, ids_sum = 0;
  int64_t count = 0;
  while (true) {
    __syncthreads();
    if (threadIdx.x == 0) more = NowNs() - start < limit_ns;
    __syncthreads();
    if (!more) break;
    random = random * 6364136223846793005u + 1442695040888963407u;
    const int64_t bundle = static_cast<int64_t>((random >> 33) % num_bundles);
    const ulonglong2* const from = memory + bundle * kVecsPerThread * kThreads + threadIdx.x;
    ulonglong2 words[kVecsPerThread];  // all of a bundle in flight
#pragma unroll
    for (int v = 0; v < kVecsPerThread; ++v) words[v] = __ldcs(from + v * kThreads);
#pragma unroll
    for (int v = 0; v < kVecsPerThread; ++v) sum += words[v].x + words[v].y;
    ids_sum += static_cast<uint64_t>(bundle);
    ++count;
  }
  atomicAdd(reinterpret_cast<unsigned long long*>(&sums[blockIdx.x]), sum);
  if (threadIdx.x == 0) {
    ids_sums[blockIdx.x] = ids_sum;
    counts[blockIdx.x] = count;
  }
}

struct GatherRate {
  double gb_s = 0;
  bool right = true;
};

GatherRate Gather(const uint64_t* memory, int64_t bytes, int64_t bundle_bytes, int blocks,
                  double seconds) {
  static uint64_t* const sums = DeviceArray<uint64_t>(256);
  static uint64_t* const ids = DeviceArray<uint64_t>(256);
  static int64_t* const counts = DeviceArray<int64_t>(256);
  PROBE_CUDA(cudaMemset(sums, 0, 256 * sizeof(uint64_t)));
  const double taken = DeviceSeconds(nullptr, [&] {
    const auto* const vecs = reinterpret_cast<const ulonglong2*>(memory);
    const auto limit_ns = static_cast<int64_t>(seconds * 1e9);
    if (bundle_bytes == 24 << 10) {
      GatherBundles<6>
          <<<blocks, kThreads>>>(vecs, bytes / bundle_bytes, limit_ns, sums, ids, counts);
    } else {
      GatherBundles<8>
          <<<blocks, kThreads>>>(vecs, bytes / bundle_bytes, limit_ns, sums, ids, counts);
    }
  });
  PROBE_CUDA(cudaGetLastError());
  const auto got = CopyToHost(sums, blocks);
  const auto id_sums = CopyToHost(ids, blocks);
  const auto bundles = CopyToHost(counts, blocks);
  GatherRate rate;
  const auto per_bundle = static_cast<uint64_t>(bundle_bytes / kBlockBytes);
  for (int b = 0; b < blocks; ++b) {
    const auto i = static_cast<size_t>(b);
    const auto n = static_cast<uint64_t>(bundles[i]);
    // The sum over bundles and their blocks of BlockWord, which is linear in the block's number.
    const uint64_t block_numbers =
        per_bundle * per_bundle * id_sums[i] + n * (per_bundle * (per_bundle - 1) / 2);
    const uint64_t expected =
        (block_numbers + n * per_bundle) * 0x9e3779b97f4a7c15u * static_cast<uint64_t>(kBlockWords);
    rate.right &= n > 0 && got[i] == expected;
    rate.gb_s += static_cast<double>(bundles[i] * bundle_bytes) / taken / 1e9;
  }
  return rate;
}

// Reads from the GPU, and at the same time by CPU threads (0: none).
void Measure(const TestMemory& memory, const uint64_t* device, int64_t bundle_bytes, int blocks,
             int threads, bool linear) {
  std::atomic<bool> stop{false};
  ReadRate cpu;
  std::thread readers;
  const std::vector<int> cpus = FirstCpus(threads);
  constexpr double kSeconds = 0.12;
  if (threads > 0) {
    readers = std::thread([&] {
      cpu = linear
                ? ReadLinearly(memory, cpus, Fetch::kL2, kSeconds)
                : ReadBundles(
                      memory, cpus,
                      {.bundle_bytes = bundle_bytes, .streams = 2, .ahead = {.lines_per_page = 64}},
                      0, &stop);
    });
    // Starting and pinning threads takes well under this.
    std::this_thread::sleep_for(std::chrono::milliseconds(linear ? 2 : 10));
  }
  const GatherRate gpu = Gather(device, memory.bytes(), bundle_bytes, blocks, kSeconds);
  stop = true;
  if (readers.joinable()) readers.join();
  Line line("host_gather");
  line.Set("bundle_bytes", bundle_bytes).Set("blocks", blocks).Set("cpu_threads", threads);
  if (threads > 0) line.Set("cpu_reads", linear ? "linear" : "bundles");
  if (!gpu.right || !cpu.right) {
    line.Set("error", "wrong sum");
    return;
  }
  line.Set("gpu_gb_s", gpu.gb_s).Set("cpu_gb_s", cpu.gb_s).Set("both_gb_s", gpu.gb_s + cpu.gb_s);
}

}  // namespace

void HostGather() {
  SleepingWaits();
  const TestMemory memory({.kind = TestMemory::Kind::kSealedMemfd, .bytes = int64_t{3} << 30});
  const uint64_t* const device = RegisteredMemory(memory);
  Gather(device, memory.bytes(), 24 << 10, 8, 0.01);  // loads the kernel
  const int allowed = static_cast<int>(FirstCpus(1024).size());
  for (const int64_t bundle_bytes : {int64_t{24} << 10, int64_t{32} << 10}) {
    for (const int blocks : {8, 16, 24, 32, 48, 64}) {
      for (const int threads : {0, 12, 13, 14, 15}) {
        if (threads > allowed) continue;
        Measure(memory, device, bundle_bytes, blocks, threads, false);
      }
    }
    for (const int threads : {12, 15}) {
      if (threads <= allowed) Measure(memory, device, bundle_bytes, 32, threads, true);
    }
  }
}

}  // namespace isotherm::probe
