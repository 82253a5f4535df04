// build/bench/solve_placement_benchmark
//
// One plan for a model of 175B geometry (96 layers of 49,152 neurons): the budget of 200 ms is for
// one core. The result is checked first against a full sort.
#include "placement_service/solver/solve_placement.h"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <random>

namespace isotherm {
namespace {

constexpr int64_t kLayers = 96;
constexpr int64_t kNeurons = 49'152;
constexpr int64_t kBundleBytes = 2 * 12'288 * 2;

std::vector<std::vector<float>> PowerLawProfile() {
  std::mt19937 random(7);
  std::exponential_distribution<float> exponent(3.0f);
  std::vector<std::vector<float>> frequency(kLayers, std::vector<float>(kNeurons));
  for (auto& layer : frequency) {
    for (float& value : layer) value = std::pow(0.001f, 1.0f / (1.0f + 4.0f * exponent(random)));
  }
  return frequency;
}

void BM_Solve(benchmark::State& state, bool one_size) {
  const std::vector<std::vector<float>> frequency = PowerLawProfile();
  SolveInput input{.layers = std::vector<LayerGeometry>(kLayers, {kNeurons, kBundleBytes}),
                   .frequency = frequency,
                   .budget_bytes = kLayers * kNeurons * kBundleBytes / 5};
  if (one_size) {
    const auto plan = SolvePlacement(input);
    std::vector<float> sorted;
    for (const auto& layer : frequency) sorted.insert(sorted.end(), layer.begin(), layer.end());
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    double best = 0;
    double sum = 0;
    for (size_t i = 0; i < sorted.size(); ++i) {
      sum += sorted[i];
      if (static_cast<int64_t>(i) < input.budget_bytes / kBundleBytes) best += sorted[i];
    }
    if (!plan.ok() || std::abs(plan->objective - best / sum) > 1e-9) {
      state.SkipWithError("the plan is not the optimum");
      return;
    }
  } else {
    for (size_t l = 0; l < input.layers.size(); l += 2) input.layers[l].bundle_bytes /= 2;
  }
  for (auto _ : state) benchmark::DoNotOptimize(SolvePlacement(input));
}
BENCHMARK_CAPTURE(BM_Solve, one_size, true)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_Solve, two_sizes, false)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace isotherm

BENCHMARK_MAIN();
