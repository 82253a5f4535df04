// build/bench/matmul_benchmark --benchmark_filter='Q8_0.*threads:2'
// Products of SmolLM2-135M's and a 7B's shapes. One row: bytes of weights a second beside the
// linear read measured just before with the same threads (weights cycle through more copies than
// caches hold). Many rows: products a second. Each result is checked before it is timed.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "bench/common/kernels/test_weights.h"
#include "bench/common/read_bandwidth.h"
#include "common/kernels/matmul.h"

namespace isotherm {
namespace {

constexpr int64_t kWeightBytes = int64_t{160} << 20;  // five times this machine's L3

bool ResultIsRight(const MatMulParams& p) {
  for (const int64_t r : {int64_t{0}, p.num_rows - 1}) {
    for (int64_t n = 0; n < p.w.rows; n += std::max<int64_t>(1, p.w.rows / 7)) {
      const auto [sum, magnitude] =
          PlainDot(p.w.dtype, p.w.data + n * p.w.row_bytes, p.x + r * p.x_stride, p.w.columns);
      const double error = std::abs(p.y[r * p.y_stride + n] - sum);
      if (!(error <= std::ldexp(magnitude * p.w.columns, -24))) return false;
    }
  }
  return true;
}

void Product(benchmark::State& state, DType dtype) {
  const int64_t rows = state.range(0), columns = state.range(1), num_rows = state.range(2);
  ThreadPool pool({.num_threads = static_cast<int>(state.range(3)), .name = "bench"});
  const int64_t row_bytes = RowBytes(dtype, columns).value();
  const int64_t copies = num_rows > 1 ? 1 : std::max<int64_t>(1, kWeightBytes / (rows * row_bytes));
  const std::vector<std::byte> weights = TestWeights(dtype, copies * rows, columns);
  AlignedFloats x(num_rows * columns), y(num_rows * rows);
  for (int64_t i = 0; i < num_rows * columns; ++i) x[i] = std::sin(static_cast<float>(i));
  MatMulParams p{.x = x.get(),
                 .x_stride = columns,
                 .num_rows = num_rows,
                 .w = {dtype, rows, columns, row_bytes, weights.data()},
                 .y = y.get(),
                 .y_stride = rows};
  if (!MatMul(p, pool).ok() || !ResultIsRight(p)) return state.SkipWithError("wrong result");
  const double read = LinearReadBytesPerSecond(pool);
  int64_t copy = 0;
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) {
    p.w.data = weights.data() + copy * rows * row_bytes;
    copy = (copy + 1) % copies;
    benchmark::DoNotOptimize(MatMul(p, pool).ok());
  }
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  const double calls_a_second = static_cast<double>(state.iterations()) / taken.count();
  state.counters["GB/s"] = calls_a_second * rows * row_bytes / 1e9;
  state.counters["read_GB/s"] = read / 1e9;
  state.counters["share"] = calls_a_second * rows * row_bytes / read;
  state.counters["GFLOP/s"] = 2e-9 * calls_a_second * rows * columns * num_rows;
}

void RegisterAll() {
  for (const DType dtype : {DType::kQ8_0, DType::kF16, DType::kQ4_0}) {
    auto* const bench =
        benchmark::RegisterBenchmark((std::string("matmul/") + std::string(Name(dtype))).c_str(),
                                     [dtype](benchmark::State& state) { Product(state, dtype); });
    bench->ArgNames({"n", "k", "rows", "threads"})->UseRealTime()->MinTime(0.2);
    for (const int64_t threads : {1, 2}) {
      for (const int64_t num_rows : {1, 4, 8, 64, 256}) {
        bench->Args({576, 576, num_rows, threads});
        bench->Args({1536, 576, num_rows, threads});
        if (num_rows <= 4) bench->Args({49152, 576, num_rows, threads});
        bench->Args({4096, 4096, num_rows, threads});
      }
    }
  }
}

}  // namespace
}  // namespace isotherm

int main(int argc, char** argv) {
  isotherm::RegisterAll();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
