// build/bench/sparse_ffn_benchmark --benchmark_filter='F16.*threads:2'
// The cold kernel on one row of SmolLM2-135M's and a 7B's layers, a fresh active set and fresh
// bundles each call. GB/s counts the rows that had to be read: every active neuron's gate, and up
// and down where the gate is open. `share` is of the linear read measured just before with the same
// threads. The result is checked before it is timed.
#include <cmath>
#include <string>
#include <vector>

#include "bench/common/kernels/test_weights.h"
#include "bench/common/read_bandwidth.h"
#include "common/kernels/sparse_ffn.h"

namespace isotherm {
namespace {

constexpr int64_t kBundleBytes = int64_t{256} << 20;
constexpr int kNumSets = 16;

struct Layer {
  SparseFfnParams params;
  std::vector<std::vector<uint64_t>> sets;
  std::vector<double> open_neurons, active_neurons;  // of each set
};

bool GateIsOpen(const SparseFfnParams& p, int64_t id) {
  const BundleView& b = p.bundles;
  return PlainDot(b.dtype, b.data + id * b.bundle_bytes, p.z, b.model_dim).first > 0;
}

// Compares a few columns of row 0 with plain double sums.
bool ResultIsRight(const SparseFfnParams& p) {
  const BundleView& b = p.bundles;
  std::vector<double> want(16, 0.0), magnitude(16, 0.0);
  for (int64_t id = 0; id < b.num_neurons; ++id) {
    if ((p.active[id / 64] >> (id % 64) & 1) == 0) continue;
    const std::byte* const bundle = b.data + id * b.bundle_bytes;
    const auto [gate, gate_size] = PlainDot(b.dtype, bundle, p.z, b.model_dim);
    const auto [up, up_size] = PlainDot(b.dtype, bundle + b.row_bytes, p.z, b.model_dim);
    for (int64_t i = 0; i < 16; ++i) {
      const double down = PlainElement(b.dtype, bundle + 2 * b.row_bytes, i * (b.model_dim / 16));
      want[i] += std::max(0.0, gate) * up * down;
      magnitude[i] += gate_size * up_size * std::abs(down);
    }
  }
  for (int64_t i = 0; i < 16; ++i) {
    const double error = std::abs(p.partial[i * (b.model_dim / 16)] - want[i]);
    if (!(error <= std::ldexp(magnitude[i] * (3 * b.model_dim + b.num_neurons), -24))) return false;
  }
  return true;
}

// `rows` > 1: each row its own random set, as in a batch or a prompt.
void SparseLayer(benchmark::State& state, DType dtype) {
  const int64_t dim = state.range(0), neurons = state.range(1), num_rows = state.range(3);
  const double density = static_cast<double>(state.range(2)) / 100;
  ThreadPool pool({.num_threads = static_cast<int>(state.range(4)), .name = "bench"});
  const int64_t row_bytes = RowBytes(dtype, dim).value();
  const int64_t bundle_bytes = (3 * row_bytes + 63) / 64 * 64;
  const int64_t copies = std::max<int64_t>(1, kBundleBytes / (neurons * bundle_bytes));
  std::vector<std::byte> memory(copies * neurons * bundle_bytes + 64);
  std::byte* const base =
      memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
  {
    const std::vector<std::byte> weights = TestWeights(dtype, neurons * 3, dim);
    for (int64_t i = 0; i < copies * neurons; ++i) {
      std::memcpy(base + i * bundle_bytes, weights.data() + i % neurons * 3 * row_bytes,
                  3 * row_bytes);
    }
  }
  AlignedFloats z(num_rows * dim), partial(num_rows * dim);
  for (int64_t i = 0; i < num_rows * dim; ++i) {
    z[i] = F16ToF32(F32ToF16(std::sin(static_cast<float>(i))));
  }
  auto workspace = SparseFfnWorkspace::Create({.num_threads = pool.num_threads(),
                                               .max_rows = num_rows,
                                               .model_dim = dim,
                                               .num_neurons = neurons});
  if (!workspace.ok()) return state.SkipWithError("no workspace");
  std::vector<uint64_t> keys;
  for (int64_t r = 0; r < num_rows; ++r) keys.push_back(StepKey(1, 2, 3, r));
  const NeuronHash hash{LayerSeed(1, 2), keys.data()};
  uint64_t work_hash = 0;
  const bool hashed = state.range(5) != 0;
  SparseFfnParams p{.bundles = {dtype, 3, dim, row_bytes, bundle_bytes, base, nullptr, neurons},
                    .z = z.get(),
                    .num_rows = num_rows,
                    .last_neuron = neurons,
                    .partial = partial.get(),
                    .hash = hashed ? &hash : nullptr,
                    .work_hash = hashed ? &work_hash : nullptr,
                    .workspace = workspace->get()};

  std::vector<char> open(neurons);
  for (int64_t id = 0; id < neurons; ++id) open[id] = GateIsOpen(p, id);
  const int64_t words = (neurons + 63) / 64;
  std::vector<std::vector<uint64_t>> sets(kNumSets);
  double bytes_a_call = 0, pairs_a_call = 0;
  uint32_t random = 99;
  for (std::vector<uint64_t>& set : sets) {
    set.assign(num_rows * words, 0);
    for (int64_t id = 0; id < neurons; ++id) {
      bool any = false;
      for (int64_t row = 0; row < num_rows; ++row) {
        random = random * 1664525u + 1013904223u;
        if ((random >> 8) / 16777216.0 >= density) continue;
        set[row * words + id / 64] |= uint64_t{1} << (id % 64);
        any = true;
        pairs_a_call += 1.0 / kNumSets;
      }
      if (any) bytes_a_call += row_bytes * (num_rows > 1 || open[id] ? 3.0 : 1.0) / kNumSets;
    }
  }
  p.active = sets[0].data();
  if (!SparseFfn(p, pool).ok() || !ResultIsRight(p)) return state.SkipWithError("wrong result");
  const double read = LinearReadBytesPerSecond(pool);
  int64_t call = 0;
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) {
    p.bundles.data = base + call % copies * neurons * bundle_bytes;
    p.active = sets[call % kNumSets].data();
    ++call;
    benchmark::DoNotOptimize(SparseFfn(p, pool).ok());
  }
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  const double calls_a_second = static_cast<double>(state.iterations()) / taken.count();
  state.counters["GB/s"] = calls_a_second * bytes_a_call / 1e9;
  state.counters["read_GB/s"] = read / 1e9;
  state.counters["share"] = calls_a_second * bytes_a_call / read;
  state.counters["pairs/s"] = calls_a_second * pairs_a_call;
}

void RegisterAll() {
  for (const DType dtype : {DType::kQ8_0, DType::kF16, DType::kQ4_0}) {
    auto* const bench = benchmark::RegisterBenchmark(
        (std::string("sparse_ffn/") + std::string(Name(dtype))).c_str(),
        [dtype](benchmark::State& state) { SparseLayer(state, dtype); });
    bench->ArgNames({"dim", "neurons", "percent", "rows", "threads", "hash"});
    bench->UseRealTime()->MinTime(0.3);
    for (const int64_t threads : {1, 2}) {
      for (const int64_t percent : {3, 12}) {
        bench->Args({576, 1536, percent, 1, threads, 1});
        bench->Args({4096, 11008, percent, 1, threads, 1});
      }
      bench->Args({576, 1536, 15, 64, threads, 1});
      bench->Args({576, 1536, 100, 64, threads, 1});
    }
    bench->Args({576, 1536, 12, 1, 1, 0});  // what the work hash costs
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
