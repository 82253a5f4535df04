#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "bench/probe/line.h"

namespace isotherm::probe {

// Ends this figure's process: after a CUDA error nothing it measures means anything.
[[noreturn]] inline void Fail(const std::string& what) {
  Line("cuda").Set("error", what);
  std::_Exit(1);
}

inline void CheckCuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) Fail(std::string(what) + ": " + cudaGetErrorString(error));
}
#define PROBE_CUDA(call) ::isotherm::probe::CheckCuda((call), #call)

// Device memory for the life of the process's figure.
template <typename T>
T* DeviceArray(int64_t count) {
  void* data = nullptr;
  PROBE_CUDA(cudaMalloc(&data, static_cast<size_t>(count) * sizeof(T)));
  return static_cast<T*>(data);
}

template <typename T>
void CopyToDevice(T* to, const std::vector<T>& from) {
  PROBE_CUDA(cudaMemcpy(to, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
}

template <typename T>
std::vector<T> CopyToHost(const T* from, int64_t count) {
  std::vector<T> to(static_cast<size_t>(count));
  PROBE_CUDA(cudaMemcpy(to.data(), from, to.size() * sizeof(T), cudaMemcpyDeviceToHost));
  return to;
}

// Waits without taking a core: CPU readers may be running.
inline void SleepingWaits() { PROBE_CUDA(cudaSetDeviceFlags(cudaDeviceScheduleBlockingSync)); }

// Seconds on the device between the ends of what was queued before and by `enqueue`.
inline double DeviceSeconds(cudaStream_t stream, const std::function<void()>& enqueue) {
  cudaEvent_t start, stop;
  PROBE_CUDA(cudaEventCreate(&start));
  PROBE_CUDA(cudaEventCreateWithFlags(&stop, cudaEventBlockingSync));
  PROBE_CUDA(cudaEventRecord(start, stream));
  enqueue();
  PROBE_CUDA(cudaEventRecord(stop, stream));
  PROBE_CUDA(cudaEventSynchronize(stop));
  float milliseconds = 0;
  PROBE_CUDA(cudaEventElapsedTime(&milliseconds, start, stop));
  PROBE_CUDA(cudaEventDestroy(start));
  PROBE_CUDA(cudaEventDestroy(stop));
  return static_cast<double>(milliseconds) / 1e3;
}

// What `enqueue` puts on a stream, as an executable graph.
inline cudaGraphExec_t CaptureGraph(const std::function<void(cudaStream_t)>& enqueue) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  PROBE_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  PROBE_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  enqueue(stream);
  PROBE_CUDA(cudaStreamEndCapture(stream, &graph));
  PROBE_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  PROBE_CUDA(cudaGraphDestroy(graph));
  PROBE_CUDA(cudaStreamDestroy(stream));
  return exec;
}

}  // namespace isotherm::probe
