#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "bench/probe/cuda/cuda_figures.h"
#include "bench/probe/cuda/cuda_util.h"

namespace isotherm::probe {
namespace {

constexpr int kDim = 4096, kNeurons = 11008, kCopies = 3, kMostTokens = 2048;

__host__ __device__ inline float ValueAt(uint64_t i) {
  uint32_t x = static_cast<uint32_t>(i) * 2654435761u;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return static_cast<float>((x ^ (x >> 16)) % 17) / 8.0f - 1.0f;  // exact in both types
}

template <typename T>
__global__ void Fill(T* out, int64_t count) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    out[i] = static_cast<T>(ValueAt(static_cast<uint64_t>(i)));
  }
}

// Up: out[token, neuron] = x[token] . row[neuron]. Down: out[token, c] = sum over neurons of
// a[token, neuron] * row[neuron][c]. Rows are `stride` elements apart.
struct Product {
  const char* what;
  bool down;
  int64_t stride;
};

template <typename T>
void Measure(cublasHandle_t blas, const char* type_name, cudaDataType type, const Product& product,
             int tokens, const T* weights, const T* input, float* out) {
  const int in_dim = product.down ? kNeurons : kDim;
  const int out_dim = product.down ? kDim : kNeurons;
  const float one = 1, zero = 0;
  const auto multiply = [&](int copy) {
    const T* const w = weights + copy * product.stride * kNeurons;
    const cublasStatus_t status =
        cublasGemmEx(blas, product.down ? CUBLAS_OP_N : CUBLAS_OP_T, CUBLAS_OP_N, out_dim, tokens,
                     in_dim, &one, w, type, static_cast<int>(product.stride), input, type, in_dim,
                     &zero, out, CUDA_R_32F, out_dim, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    if (status != CUBLAS_STATUS_SUCCESS) Fail("cublasGemmEx " + std::to_string(status));
  };
  multiply(0);
  PROBE_CUDA(cudaDeviceSynchronize());
  const auto got = CopyToHost(out, int64_t{tokens} * out_dim);
  bool right = true;
  for (int i = 0; i < 64; ++i) {
    const int token = i * 37 % tokens, o = i * 1009 % out_dim;
    double want = 0, magnitude = 0;
    for (int k = 0; k < in_dim; ++k) {
      const int64_t w = product.down ? k * product.stride + o : o * product.stride + k;
      const double term = static_cast<double>(ValueAt(static_cast<uint64_t>(w))) *
                          ValueAt(static_cast<uint64_t>(token) * in_dim + k);
      want += term;
      magnitude += std::abs(term);
    }
    const double error = got[static_cast<size_t>(int64_t{token} * out_dim + o)] - want;
    right &= std::abs(error) <= magnitude * 1e-4;
  }
  constexpr int kRepeats = 12;
  const double seconds = DeviceSeconds(nullptr, [&] {
    for (int i = 0; i < kRepeats; ++i) multiply(i % kCopies);
  });
  Line line("gemm");
  line.Set("product", product.what).Set("type", type_name).Set("tokens", tokens);
  if (!right) {
    line.Set("error", "wrong result");
    return;
  }
  line.Set("us", seconds * 1e6 / kRepeats)
      .Set("tflop_s", 2.0 * kDim * kNeurons * tokens * kRepeats / seconds / 1e12);
}

template <typename T>
void MeasureType(cublasHandle_t blas, const char* name, cudaDataType type) {
  constexpr int64_t kWeights = int64_t{3} * kDim * kNeurons * kCopies;
  constexpr int64_t kInputs = int64_t{kMostTokens} * kNeurons;
  T* const weights = DeviceArray<T>(kWeights);
  T* const input = DeviceArray<T>(kInputs);
  float* const out = DeviceArray<float>(kInputs);
  Fill<<<1024, 256>>>(weights, kWeights);
  Fill<<<1024, 256>>>(input, kInputs);
  for (const Product& product :
       {Product{"up", false, kDim}, Product{"up, rows inside bundles", false, 3 * kDim},
        Product{"down, rows inside bundles", true, 3 * kDim}}) {
    for (const int tokens : {256, 512, kMostTokens}) {
      Measure(blas, name, type, product, tokens, weights, input, out);
    }
  }
  PROBE_CUDA(cudaFree(weights));
  PROBE_CUDA(cudaFree(input));
  PROBE_CUDA(cudaFree(out));
}

}  // namespace

void Gemm() {
  SleepingWaits();
  cublasHandle_t blas;
  if (cublasCreate(&blas) != CUBLAS_STATUS_SUCCESS) Fail("cublasCreate");
  MeasureType<__nv_bfloat16>(blas, "bf16", CUDA_R_16BF);
  MeasureType<__half>(blas, "f16", CUDA_R_16F);
}

}  // namespace isotherm::probe
