// How fast the device multiplies its matrices with one row and few: the kernels of a decode step,
// launched one behind the other as a step does, each checked before it is timed. Beside them the
// rate at which the same device copies memory.
//
//   product_benchmark [--rows 1,2,4]
#include <cuda_fp16.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>
#include <vector>

#include "gpu_worker/cuda/kernels/product.cuh"

namespace isotherm::gpu {
namespace {

#define CHECK_CUDA(call)                                                  \
  do {                                                                    \
    if (const cudaError_t error = (call); error != cudaSuccess) {         \
      std::fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(error)); \
      std::exit(1);                                                       \
    }                                                                     \
  } while (false)

struct Shape {
  const char* name;
  int64_t rows, columns;
};
constexpr Shape kShapes[] = {{"7B qkv", 12288, 4096},    {"7B out", 4096, 4096},
                             {"7B head", 32000, 4096},   {"13B qkv", 15360, 5120},
                             {"falcon qkv", 9216, 8192}, {"falcon out", 8192, 8192}};

// Small numbers of 16 bits, the same for each copy.
std::vector<uint16_t> Halves(int64_t count) {
  std::vector<uint16_t> out(static_cast<size_t>(count));
  uint32_t state = 12345;
  for (uint16_t& half : out) {
    state = state * 1664525u + 1013904223u;
    half = __half_as_ushort(__float2half(static_cast<float>(state >> 24) / 128.0f - 1.0f));
  }
  return out;
}

double CopyRate(int64_t bytes) {
  void *from = nullptr, *to = nullptr;
  CHECK_CUDA(cudaMalloc(&from, static_cast<size_t>(bytes)));
  CHECK_CUDA(cudaMalloc(&to, static_cast<size_t>(bytes)));
  cudaEvent_t start, end;
  cudaEventCreate(&start);
  cudaEventCreate(&end);
  float best = 1e30f;
  for (int i = 0; i < 5; ++i) {
    cudaEventRecord(start);
    cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice);
    cudaEventRecord(end);
    CHECK_CUDA(cudaEventSynchronize(end));
    float ms = 0;
    cudaEventElapsedTime(&ms, start, end);
    best = std::min(best, ms);
  }
  cudaFree(from);
  cudaFree(to);
  return 2.0 * static_cast<double>(bytes) / (static_cast<double>(best) * 1e6);
}

constexpr int64_t kCheckEvery = 61;  // outputs

struct Bench {
  double limit_gb_s = 0;

  template <class Launch>
  void Time(const char* name, const Shape& shape, int rows, const std::vector<DeviceMatrix>& w,
            const ProductArgs& args, const std::vector<float>& want, const Launch& launch) {
    cudaStream_t stream;
    CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CHECK_CUDA(cudaMemset(args.y, 0, static_cast<size_t>(rows * shape.rows) * sizeof(float)));
    ProductArgs mine = args;
    mine.w = w[0];
    launch(mine, stream);
    CHECK_CUDA(cudaStreamSynchronize(stream));
    std::vector<float> got(want.size());
    for (int r = 0; r < rows; ++r) {
      CHECK_CUDA(cudaMemcpy(got.data() + r * shape.rows, args.y + r * args.y_stride,
                            static_cast<size_t>(shape.rows) * sizeof(float),
                            cudaMemcpyDeviceToHost));
    }
    for (size_t i = 0; i < want.size(); i += kCheckEvery) {
      if (std::abs(got[i] - want[i]) > 1e-3f * (1 + std::abs(want[i]))) {
        std::fprintf(stderr, "%s %s: output %zu is %g, want %g\n", name, shape.name, i,
                     static_cast<double>(got[i]), static_cast<double>(want[i]));
        std::exit(1);
      }
    }
    // As in a step: from a graph, one behind the other.
    constexpr int kLaunches = 24;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < kLaunches; ++i) {
      mine.w = w[static_cast<size_t>(i) % w.size()];
      launch(mine, stream);
    }
    CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
    CHECK_CUDA(cudaGraphInstantiate(&executable, graph, 0));
    cudaEvent_t start, end;
    cudaEventCreate(&start);
    cudaEventCreate(&end);
    std::vector<float> times;
    for (int i = 0; i < 7; ++i) {
      cudaEventRecord(start, stream);
      cudaGraphLaunch(executable, stream);
      cudaEventRecord(end, stream);
      CHECK_CUDA(cudaEventSynchronize(end));
      float ms = 0;
      cudaEventElapsedTime(&ms, start, end);
      times.push_back(ms / kLaunches);
    }
    std::sort(times.begin(), times.end());
    const double us = 1e3 * static_cast<double>(times[times.size() / 2]);
    const double bytes = static_cast<double>(
        w[0].rows * (w[0].row_bytes() + (w[0].scales != nullptr ? w[0].padded_columns / 16 : 0)));
    const nlohmann::ordered_json line = {{"figure", "product"},
                                         {"kernel", name},
                                         {"shape", shape.name},
                                         {"rows", rows},
                                         {"us", us},
                                         {"gb_s", bytes / us * 1e-3},
                                         {"copy_gb_s", limit_gb_s},
                                         {"share", bytes / us * 1e-3 / limit_gb_s}};
    std::cout << line.dump() << std::endl;
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  }
};

void Run(const std::vector<int>& row_counts) {
  Bench bench{.limit_gb_s = CopyRate(int64_t{1} << 30)};
  for (const Shape& shape : kShapes) {
    const int64_t count = shape.rows * shape.columns;
    const std::vector<uint16_t> halves = Halves(count);
    // More than the second-level cache holds.
    const int64_t copies = std::max<int64_t>(2, (int64_t{600} << 20) / (2 * count));
    std::vector<DeviceMatrix> f16, q8;
    std::vector<void*> memory;
    const auto put = [&](const void* from, int64_t bytes) {
      void* to = nullptr;
      CHECK_CUDA(cudaMalloc(&to, static_cast<size_t>(bytes)));
      CHECK_CUDA(cudaMemcpy(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice));
      memory.push_back(to);
      return to;
    };
    for (int64_t i = 0; i < copies; ++i) {
      f16.push_back({.dtype = DType::kF16,
                     .rows = shape.rows,
                     .columns = shape.columns,
                     .padded_columns = shape.columns,
                     .data = put(halves.data(), 2 * count)});
    }
    // The same bytes taken for two integers each, with one scale.
    const std::vector<uint16_t> scales(static_cast<size_t>(count / 32),
                                       __half_as_ushort(__float2half(0.01f)));
    for (int64_t i = 0; i < 2 * copies; ++i) {
      q8.push_back(
          {.dtype = DType::kQ8_0,
           .rows = shape.rows,
           .columns = shape.columns,
           .padded_columns = shape.columns,
           .data = put(halves.data(), count),
           .scales = static_cast<const uint16_t*>(put(scales.data(), count / 32 * int64_t{2}))});
    }
    const int most = *std::max_element(row_counts.begin(), row_counts.end());
    std::vector<float> x(static_cast<size_t>(most * shape.columns));
    std::mt19937 random(3);
    for (float& v : x) v = static_cast<float>(random() % 255) / 127.0f - 1.0f;
    const std::vector<float> ones(static_cast<size_t>(shape.columns), 1.0f);
    const float* const norm = static_cast<const float*>(put(ones.data(), shape.columns * 4));
    const float* const dx = static_cast<const float*>(put(x.data(), most * shape.columns * 4));
    std::vector<float> zeros(static_cast<size_t>(most * shape.rows));
    float* const y = static_cast<float*>(put(zeros.data(), static_cast<int64_t>(zeros.size()) * 4));
    for (const int rows : row_counts) {
      const int32_t* const num_rows = static_cast<const int32_t*>(put(&rows, sizeof(rows)));
      // Normed as the input of a layer's first product is, and rounded.
      const NormWeights rms{.kind = NormOp::kRms, .weight = norm, .eps = 1e-5f};
      std::vector<float> normed(static_cast<size_t>(rows * shape.columns));
      for (int r = 0; r < rows; ++r) {
        double squares = 0;
        for (int64_t c = 0; c < shape.columns; ++c)
          squares += static_cast<double>(x[r * shape.columns + c]) * x[r * shape.columns + c];
        const auto scale = static_cast<float>(
            1.0 / std::sqrt(squares / static_cast<double>(shape.columns) + 1e-5));
        for (int64_t c = 0; c < shape.columns; ++c) {
          normed[r * shape.columns + c] =
              __half2float(__float2half(x[r * shape.columns + c] * scale));
        }
      }
      std::vector<float> want(static_cast<size_t>(rows * shape.rows)), want8(want.size());
      for (int64_t i = 0; i < rows * shape.rows; i += kCheckEvery) {
        const int64_t r = i / shape.rows, o = i % shape.rows;
        double sum = 0, sum8 = 0;
        const auto* const bytes = reinterpret_cast<const int8_t*>(halves.data());
        for (int64_t c = 0; c < shape.columns; ++c) {
          const double v = normed[r * shape.columns + c];
          sum += v * __half2float(__ushort_as_half(halves[o * shape.columns + c]));
          sum8 += v * bytes[o * shape.columns + c];
        }
        want[i] = static_cast<float>(sum);
        want8[i] = static_cast<float>(sum8 * __half2float(__float2half(0.01f)));
      }
      const ProductArgs args{
          .in = {.x = dx, .stride = shape.columns, .num_rows = num_rows, .norm = rms},
          .y = y,
          .y_stride = shape.rows};
      const auto product = [&](const ProductArgs& a, cudaStream_t s) { LaunchProduct(a, rows, s); };
      bench.Time("product f16", shape, rows, f16, args, want, product);
      bench.Time("product q8_0", shape, rows, q8, args, want8, product);
    }
    for (void* const at : memory) cudaFree(at);
  }
}

}  // namespace
}  // namespace isotherm::gpu

int main(int argc, char** argv) {
  CLI::App app("Products of the device's matrices with few rows.", "product_benchmark");
  std::vector<int> rows = {1, 2, 4};
  app.add_option("--rows", rows, "rows of x")->delimiter(',')->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  isotherm::gpu::Run(rows);
}
