#include <algorithm>
#include <chrono>
#include <vector>

#include "bench/probe/cuda/cuda_figures.h"
#include "bench/probe/cuda/cuda_util.h"

namespace isotherm::probe {
namespace {

constexpr int kThreads = 256;
constexpr int kKernels = 256;

// Programmatic dependent launch: the next kernel may start at once and waits for this one's memory.
template <bool kProgrammatic>
__global__ void Count(int* counters) {
  if constexpr (kProgrammatic) {
    cudaTriggerProgrammaticLaunchCompletion();
    cudaGridDependencySynchronize();
  }
  if (threadIdx.x == 0) counters[blockIdx.x] += 1;
}

void LaunchProgrammatic(int blocks, cudaStream_t stream, int* counters) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  PROBE_CUDA(cudaLaunchKernelEx(&config, Count<true>, counters));
}

// Layers of A, then B and C side by side, then D; or all four in a row.
cudaGraphExec_t LayerGraph(bool fork, int blocks, int* counters, int* other) {
  cudaStream_t side;
  cudaEvent_t forked, joined;
  PROBE_CUDA(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking));
  PROBE_CUDA(cudaEventCreateWithFlags(&forked, cudaEventDisableTiming));
  PROBE_CUDA(cudaEventCreateWithFlags(&joined, cudaEventDisableTiming));
  return CaptureGraph([&](cudaStream_t stream) {
    for (int i = 0; i < kKernels; i += 4) {
      Count<false><<<blocks, kThreads, 0, stream>>>(counters);
      if (fork) {
        PROBE_CUDA(cudaEventRecord(forked, stream));
        PROBE_CUDA(cudaStreamWaitEvent(side, forked));
      }
      Count<false><<<blocks, kThreads, 0, fork ? side : stream>>>(other);
      Count<false><<<blocks, kThreads, 0, stream>>>(counters);
      if (fork) {
        PROBE_CUDA(cudaEventRecord(joined, side));
        PROBE_CUDA(cudaStreamWaitEvent(stream, joined));
      }
      Count<false><<<blocks, kThreads, 0, stream>>>(counters);
    }
  });
}

void Measure(const char* how, int blocks, cudaGraphExec_t graph, int* counters, int* other) {
  cudaStream_t stream;
  PROBE_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  PROBE_CUDA(cudaMemset(counters, 0, static_cast<size_t>(blocks) * sizeof(int)));
  PROBE_CUDA(cudaMemset(other, 0, static_cast<size_t>(blocks) * sizeof(int)));
  PROBE_CUDA(cudaGraphUpload(graph, stream));
  PROBE_CUDA(cudaGraphLaunch(graph, stream));
  PROBE_CUDA(cudaStreamSynchronize(stream));
  constexpr int kReplays = 40;
  double host_s = 0;
  const double seconds = DeviceSeconds(stream, [&] {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kReplays; ++i) PROBE_CUDA(cudaGraphLaunch(graph, stream));
    host_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  });
  // One at a time, from the call to its end as the host sees it.
  std::vector<double> latencies;
  for (int i = 0; i < 20; ++i) {
    const auto start = std::chrono::steady_clock::now();
    PROBE_CUDA(cudaGraphLaunch(graph, stream));
    PROBE_CUDA(cudaStreamSynchronize(stream));
    latencies.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(latencies.begin(), latencies.end());
  const auto counts = CopyToHost(counters, blocks);
  const auto others = CopyToHost(other, blocks);
  bool right = true;
  for (int b = 0; b < blocks; ++b) {
    right &= counts[static_cast<size_t>(b)] + others[static_cast<size_t>(b)] ==
             kKernels * (kReplays + 21);
  }
  Line line("graph_replay");
  line.Set("how", how).Set("blocks", blocks);
  if (!right) {
    line.Set("error", "a kernel ran too early, twice or never");
    return;
  }
  line.Set("us_a_kernel", seconds * 1e6 / kReplays / kKernels)
      .Set("launch_call_us", host_s * 1e6 / kReplays)
      .Set("launch_to_end_us", latencies[latencies.size() / 2] * 1e6)
      .Set("kernels", kKernels);
}

}  // namespace

void GraphReplay() {
  constexpr int kMostBlocks = 264;
  int* const counters = DeviceArray<int>(kMostBlocks);
  int* const other = DeviceArray<int>(kMostBlocks);
  for (const int blocks : {1, 32, 132, kMostBlocks}) {
    const cudaGraphExec_t plain = CaptureGraph([&](cudaStream_t stream) {
      for (int i = 0; i < kKernels; ++i) Count<false><<<blocks, kThreads, 0, stream>>>(counters);
    });
    Measure("plain edges", blocks, plain, counters, other);
    const cudaGraphExec_t programmatic = CaptureGraph([&](cudaStream_t stream) {
      for (int i = 0; i < kKernels; ++i) LaunchProgrammatic(blocks, stream, counters);
    });
    Measure("programmatic edges", blocks, programmatic, counters, other);
    Measure("four kernels a layer in a row", blocks, LayerGraph(false, blocks, counters, other),
            counters, other);
    Measure("four kernels a layer, two side by side", blocks,
            LayerGraph(true, blocks, counters, other), counters, other);
  }
}

}  // namespace isotherm::probe
