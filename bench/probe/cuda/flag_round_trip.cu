#include <cuda/atomic>

#include <atomic>
#include <thread>

#include "bench/probe/cuda/cuda_figures.h"
#include "bench/probe/cuda/cuda_util.h"
#include "bench/probe/pinned_threads.h"

namespace isotherm::probe {
namespace {

constexpr int kThreads = 256;
constexpr int kPostWords = 1200;     // 8 KiB of z and 1.4 KB of bits
constexpr int kPartialWords = 2048;  // 16 KiB of partial sums

// In host memory that the GPU sees. Each side writes its own lines only.
struct Channel {
  alignas(128) uint32_t posted;
  alignas(128) uint32_t answered;
  alignas(128) uint64_t post[kPostWords];
  alignas(128) uint64_t partial[kPartialWords];
};

__device__ void Post(Channel* channel, uint32_t round, bool payload) {
  if (payload) {
    for (int i = threadIdx.x; i < kPostWords; i += kThreads) channel->post[i] = round + i;
    __threadfence_system();
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    cuda::atomic_ref<uint32_t, cuda::thread_scope_system>(channel->posted)
        .store(round, cuda::memory_order_release);
  }
}

// False once two seconds have passed: the kernel ends whatever the CPU does.
__device__ bool AwaitAnswer(Channel* channel, uint32_t round, bool payload,
                            unsigned long long* sum) {
  __shared__ bool answered;
  if (threadIdx.x == 0) {
    int64_t start, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    const cuda::atomic_ref<uint32_t, cuda::thread_scope_system> word(channel->answered);
    while (!(answered = word.load(cuda::memory_order_acquire) == round)) {
      asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
      if (now - start > 2'000'000'000) break;
    }
  }
  __syncthreads();
  const bool ok = answered;
  if (ok && payload) {
    uint64_t own = 0;
    for (int i = threadIdx.x; i < kPartialWords; i += kThreads) {
      own += __ldcv(reinterpret_cast<const unsigned long long*>(channel->partial) + i);
    }
    atomicAdd(sum, own);
  }
  __syncthreads();
  return ok;
}

__global__ void PostKernel(Channel* channel, const uint32_t* base, uint32_t round, bool payload) {
  Post(channel, *base + round, payload);
}

__global__ void WaitKernel(Channel* channel, const uint32_t* base, uint32_t round, bool payload,
                           unsigned long long* sum, int* failed) {
  if (!AwaitAnswer(channel, *base + round, payload, sum) && threadIdx.x == 0) *failed = 1;
}

__global__ void BothKernel(Channel* channel, uint32_t first, int rounds, bool payload,
                           unsigned long long* sum, int* failed) {
  for (int i = 0; i < rounds; ++i) {
    Post(channel, first + i, payload);
    if (!AwaitAnswer(channel, first + i, payload, sum)) {
      if (threadIdx.x == 0) *failed = 1;
      return;
    }
  }
}

uint64_t PartialWord(uint32_t round, int i) { return round * 3 + static_cast<uint64_t>(i); }

// What the host adds up for a round's payload, and the GPU for its answer.
uint64_t PostSum(uint32_t round) {
  return uint64_t{kPostWords} * round + uint64_t{kPostWords} * (kPostWords - 1) / 2;
}
uint64_t PartialSum(uint32_t round) {
  return uint64_t{kPartialWords} * 3 * round + uint64_t{kPartialWords} * (kPartialWords - 1) / 2;
}

// Answers rounds [first, first + rounds); false when a payload was wrong or none came for 3 s.
bool Answer(Channel& channel, uint32_t first, int rounds, bool payload) {
  const std::atomic_ref<uint32_t> posted(channel.posted), answered(channel.answered);
  bool right = true;
  for (uint32_t round = first; round < first + static_cast<uint32_t>(rounds); ++round) {
    const auto start = std::chrono::steady_clock::now();
    while (posted.load(std::memory_order_acquire) != round) {
      __builtin_ia32_pause();
      if (std::chrono::steady_clock::now() - start > std::chrono::seconds(3)) return false;
    }
    if (payload) {
      uint64_t sum = 0;
      for (int i = 0; i < kPostWords; ++i) sum += channel.post[i];
      right &= sum == PostSum(round);
      for (int i = 0; i < kPartialWords; ++i) channel.partial[i] = PartialWord(round, i);
    }
    answered.store(round, std::memory_order_release);
  }
  return right;
}

struct Setup {
  Channel* host = nullptr;
  Channel* device = nullptr;
  uint32_t* base = nullptr;
  unsigned long long* sum = nullptr;
  int* failed = nullptr;
  uint32_t next_round = 1;
};

// Runs `launch` beside an answering thread; seconds of the device.
void Measure(Setup& setup, const char* how, int rounds, bool payload,
             const std::function<void(uint32_t first)>& launch) {
  const uint32_t first = setup.next_round;
  setup.next_round += static_cast<uint32_t>(rounds);
  PROBE_CUDA(cudaMemset(setup.sum, 0, sizeof(*setup.sum)));
  PROBE_CUDA(cudaMemset(setup.failed, 0, sizeof(*setup.failed)));
  PROBE_CUDA(cudaMemcpy(setup.base, &first, sizeof(first), cudaMemcpyHostToDevice));
  bool right = true;
  std::thread answerer([&] {
    RunPinned({FirstCpus(1024).back()},
              [&](int) { right = Answer(*setup.host, first, rounds, payload); });
  });
  const double seconds = DeviceSeconds(nullptr, [&] { launch(first); });
  answerer.join();
  uint64_t expected = 0;
  for (int i = 0; i < rounds; ++i) {
    if (payload) expected += PartialSum(first + static_cast<uint32_t>(i));
  }
  right &= CopyToHost(setup.failed, 1)[0] == 0 && CopyToHost(setup.sum, 1)[0] == expected;
  Line line("flag_round_trip");
  line.Set("how", how).Set("payload", payload);
  if (!right) {
    line.Set("error", "a round was lost or its payload wrong");
    return;
  }
  line.Set("us", seconds * 1e6 / rounds);
}

}  // namespace

void FlagRoundTrip() {
  SleepingWaits();
  Setup setup;
  void* host = nullptr;
  PROBE_CUDA(cudaHostAlloc(&host, sizeof(Channel), cudaHostAllocMapped));
  setup.host = new (host) Channel{};
  void* device = nullptr;
  PROBE_CUDA(cudaHostGetDevicePointer(&device, host, 0));
  setup.device = static_cast<Channel*>(device);
  setup.base = DeviceArray<uint32_t>(1);
  setup.sum = DeviceArray<unsigned long long>(1);
  setup.failed = DeviceArray<int>(1);
  for (const bool payload : {false, true}) {
    for (int pass = 0; pass < 2; ++pass) {  // the first loads the kernels
      const char* const suffix = pass == 0 ? ", first" : "";
      Measure(setup, (std::string("one kernel") + suffix).c_str(), 2000, payload,
              [&](uint32_t first) {
                BothKernel<<<1, kThreads>>>(setup.device, first, 2000, payload, setup.sum,
                                            setup.failed);
              });
      constexpr int kLayers = 64;
      const cudaGraphExec_t graph = CaptureGraph([&](cudaStream_t stream) {
        for (uint32_t i = 0; i < kLayers; ++i) {
          PostKernel<<<1, kThreads, 0, stream>>>(setup.device, setup.base, i, payload);
          WaitKernel<<<1, kThreads, 0, stream>>>(setup.device, setup.base, i, payload, setup.sum,
                                                 setup.failed);
        }
      });
      PROBE_CUDA(cudaGraphUpload(graph, nullptr));
      Measure(setup, (std::string("two kernels a layer in a graph") + suffix).c_str(), kLayers,
              payload, [&](uint32_t) { PROBE_CUDA(cudaGraphLaunch(graph, nullptr)); });
      PROBE_CUDA(cudaGraphExecDestroy(graph));
    }
  }
}

}  // namespace isotherm::probe
