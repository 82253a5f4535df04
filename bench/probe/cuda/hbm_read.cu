#include <algorithm>

#include "bench/probe/cuda/cuda_figures.h"
#include "bench/probe/cuda/cuda_util.h"

namespace isotherm::probe {
namespace {

__global__ void Number(ulonglong2* data, int64_t vecs) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < vecs; i += step) {
    data[i] = make_ulonglong2(2 * i, 2 * i + 1);
  }
}

__global__ void SumVecs(const ulonglong2* data, int64_t vecs, unsigned long long* total) {
  unsigned long long sum = 0;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; i + 3 * step < vecs; i += 4 * step) {
    const ulonglong2 a = __ldcs(data + i), b = __ldcs(data + i + step);
    const ulonglong2 c = __ldcs(data + i + 2 * step), d = __ldcs(data + i + 3 * step);
    sum += a.x + a.y + b.x + b.y + c.x + c.y + d.x + d.y;
  }
  for (; i < vecs; i += step) sum += data[i].x + data[i].y;
  atomicAdd(total, sum);
}

}  // namespace

void HbmRead() {
  SleepingWaits();
  constexpr int64_t kBytes = int64_t{4} << 30;
  constexpr uint64_t kWords = kBytes / 8;
  int processors = 0;
  PROBE_CUDA(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0));
  ulonglong2* const data = DeviceArray<ulonglong2>(kBytes / 16);
  unsigned long long* const total = DeviceArray<unsigned long long>(1);
  Number<<<processors * 8, 256>>>(data, kBytes / 16);
  for (const int blocks_each : {1, 2, 4, 8}) {
    for (const int threads : {256, 512}) {
      double best = 0;
      bool right = true;
      for (int pass = 0; pass < 4; ++pass) {
        PROBE_CUDA(cudaMemset(total, 0, sizeof(*total)));
        const double seconds = DeviceSeconds(nullptr, [&] {
          SumVecs<<<processors * blocks_each, threads>>>(data, kBytes / 16, total);
        });
        PROBE_CUDA(cudaGetLastError());
        right &= CopyToHost(total, 1)[0] == kWords / 2 * (kWords - 1);
        best = std::max(best, static_cast<double>(kBytes) / seconds / 1e9);
      }
      Line line("hbm_read");
      line.Set("blocks_per_multiprocessor", blocks_each).Set("threads", threads);
      if (right) {
        line.Set("gb_s", best);
      } else {
        line.Set("error", "wrong sum");
      }
    }
  }
}

}  // namespace isotherm::probe
