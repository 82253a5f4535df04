#include <cublas_v2.h>

#include <chrono>

#include "bench/probe/cuda/cuda_figures.h"
#include "bench/probe/cuda/cuda_util.h"
#include "bench/probe/cuda/nvml.h"

namespace isotherm::probe {
namespace {

__global__ void AddOne(int* value) { *value += 1; }

void Report(const char* stage, const DriverMemory& before) {
  const DriverMemory now = ReadDriverMemory();
  size_t free_bytes = 0, total_bytes = 0;
  PROBE_CUDA(cudaMemGetInfo(&free_bytes, &total_bytes));
  Line("context")
      .Set("stage", stage)
      .Set("process_bytes", now.process)
      .Set("device_delta_bytes", now.device < 0 ? -1 : now.device - before.device)
      .Set("total_less_free_bytes", static_cast<int64_t>(total_bytes - free_bytes));
}

void SetLimit(const char* name, cudaLimit limit, size_t bytes) {
  const cudaError_t error = cudaDeviceSetLimit(limit, bytes);
  size_t now = 0;
  cudaDeviceGetLimit(&now, limit);
  Line("context")
      .Set("limit", name)
      .Set("asked", static_cast<int64_t>(bytes))
      .Set("now", static_cast<int64_t>(now))
      .Set("answer", cudaGetErrorString(error));
  cudaGetLastError();
}

}  // namespace

void ContextSize() {
  const bool small_limits = std::getenv("PROBE_SMALL_LIMITS") != nullptr;
  const DriverMemory before = ReadDriverMemory();
  Line("context")
      .Set("loading", std::getenv("CUDA_MODULE_LOADING"))
      .Set("small_limits", small_limits)
      .Set("one_queue", std::getenv("CUDA_DEVICE_MAX_CONNECTIONS") != nullptr);
  const auto start = std::chrono::steady_clock::now();
  PROBE_CUDA(cudaFree(nullptr));
  Line("context").Set(
      "create_s", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  Report("cudaFree(0)", before);
  if (small_limits) {
    SetLimit("stack", cudaLimitStackSize, 256);
    SetLimit("printf", cudaLimitPrintfFifoSize, 4096);
    SetLimit("heap", cudaLimitMallocHeapSize, 4096);
    SetLimit("pending_launches", cudaLimitDevRuntimePendingLaunchCount, 1);
    Report("limits reduced", before);
  }
  int* const value = DeviceArray<int>(1);
  PROBE_CUDA(cudaMemset(value, 0, sizeof(int)));
  Report("first allocation", before);
  AddOne<<<1, 1>>>(value);
  PROBE_CUDA(cudaDeviceSynchronize());
  if (CopyToHost(value, 1)[0] != 1) Fail("the kernel did not run");
  Report("first kernel", before);
  const cudaGraphExec_t graph = CaptureGraph([&](cudaStream_t stream) {
    for (int i = 0; i < 512; ++i) AddOne<<<1, 1, 0, stream>>>(value);
  });
  PROBE_CUDA(cudaGraphLaunch(graph, nullptr));
  PROBE_CUDA(cudaDeviceSynchronize());
  if (CopyToHost(value, 1)[0] != 513) Fail("the graph did not run");
  Report("graph of 512 kernels", before);
  for (int i = 0; i < 4; ++i) {
    cudaStream_t stream;
    PROBE_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  }
  Report("four streams", before);
  cublasHandle_t blas;
  if (cublasCreate(&blas) != CUBLAS_STATUS_SUCCESS) Fail("cublasCreate");
  Report("cublasCreate", before);
  constexpr int kSize = 512;
  uint16_t* const a = DeviceArray<uint16_t>(kSize * kSize);
  float* const c = DeviceArray<float>(kSize * kSize);
  PROBE_CUDA(cudaMemset(a, 0, kSize * kSize * 2));
  const float one = 1, zero = 0;
  for (const cudaDataType type : {CUDA_R_16BF, CUDA_R_16F}) {
    if (cublasGemmEx(blas, CUBLAS_OP_T, CUBLAS_OP_N, kSize, kSize, kSize, &one, a, type, kSize, a,
                     type, kSize, &zero, c, CUDA_R_32F, kSize, CUBLAS_COMPUTE_32F,
                     CUBLAS_GEMM_DEFAULT) != CUBLAS_STATUS_SUCCESS) {
      Fail("cublasGemmEx");
    }
  }
  PROBE_CUDA(cudaDeviceSynchronize());
  Report("first products", before);
}

}  // namespace isotherm::probe
