// build/bench/solve_placement_benchmark
//
// One plan for a model of 175B geometry (96 layers of 49,152 neurons) on one core: 200 ms for one
// from nothing, 20 ms for one after another. The first is checked against a full sort. Rows:
//   full            nothing known of the last plan
//   full, times     with measured costs: balance points and whole layers
//   re-solve        a second later: every tenth neuron's frequency changed by up to a fifth
//   other budget    the same profile, five percent more or less to spend
//   two sizes       layers of two bundle sizes
//   two nodes       two NUMA nodes, from nothing; and again a second later
//   two bins        two gpu_workers with half of the layers and the budget each
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

const std::vector<SolveNode> kNodes = {{0.5, 1}, {1, 1.1}};

using Profile = std::vector<std::vector<float>>;

// p(u) = m (b + 1) (1 - u)^b over a random rank u, layers differing in both.
Profile PowerLawProfile() {
  std::mt19937 random(7);
  std::uniform_real_distribution<float> unit(0.0f, 1.0f);
  Profile frequency(kLayers, std::vector<float>(kNeurons));
  for (auto& layer : frequency) {
    const float m = 0.03f + 0.05f * unit(random), b = 1.5f + 3 * unit(random);
    for (float& value : layer) {
      value = std::min(1.0f, m * (b + 1) * std::pow(1.0f - unit(random), b));
    }
  }
  return frequency;
}

Profile Reads(const Profile& frequency) {
  Profile reads = frequency;
  for (auto& layer : reads) {
    for (float& value : layer) value *= static_cast<float>(kBundleBytes);
  }
  return reads;
}

SolveInput Input(const Profile& frequency, const Profile& reads) {
  return {.layers = std::vector<LayerGeometry>(kLayers, {kNeurons, kBundleBytes}),
          .frequency = frequency,
          .bins = {{.budget_bytes = kLayers * kNeurons * kBundleBytes / 5}},
          .reads = reads};
}

void UseTimes(SolveInput& input) {
  input.bins[0].cold_fixed = 12'000;        // ns a layer
  input.bins[0].cold_per_byte = 1.0 / 100;  // 100 GB/s
  input.bins[0].hot_fixed = 8'000;
  input.bins[0].hot_per_byte = 1.0 / 2'000;
}

// The plan's hot neurons fire as often, summed, as the most frequent ones do.
bool IsOptimum(const Profile& frequency, const PlacementPlan& plan) {
  std::vector<float> sorted;
  double hot = 0;
  for (size_t l = 0; l < frequency.size(); ++l) {
    sorted.insert(sorted.end(), frequency[l].begin(), frequency[l].end());
    for (size_t n = 0; n < frequency[l].size(); ++n) {
      if (plan.layers[l].hot[n / 64] >> (n % 64) & 1) hot += frequency[l][n];
    }
  }
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  double best = 0;
  for (int64_t i = 0; i < plan.budget_bytes / kBundleBytes; ++i) {
    best += sorted[static_cast<size_t>(i)];
  }
  return std::abs(hot - best) < 1e-9 * best;
}

void BM_Full(benchmark::State& state, bool times) {
  const Profile frequency = PowerLawProfile(), reads = Reads(frequency);
  SolveInput input = Input(frequency, reads);
  const auto plan = SolvePlacement(input);
  if (!plan.ok() || !IsOptimum(frequency, *plan)) {
    state.SkipWithError("the plan is not the optimum");
    return;
  }
  if (times) UseTimes(input);
  for (auto _ : state) benchmark::DoNotOptimize(SolvePlacement(input));
}
BENCHMARK_CAPTURE(BM_Full, full, false)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_Full, full_times, true)->Unit(benchmark::kMillisecond);

void BM_Again(benchmark::State& state, bool other_profile, bool nodes) {
  // Two of everything, so that each iteration differs from the one before.
  const Profile frequency = PowerLawProfile();
  Profile changed = frequency;
  std::mt19937 random(9);
  std::uniform_real_distribution<float> factor(0.8f, 1.2f);
  for (auto& layer : changed) {
    for (float& value : layer) {
      if (random() % 10 == 0) value = std::min(1.0f, value * factor(random));
    }
  }
  const Profile reads = Reads(frequency), changed_reads = Reads(changed);
  SolveInput inputs[2] = {Input(frequency, reads),
                          other_profile ? Input(changed, changed_reads) : Input(frequency, reads)};
  for (SolveInput& input : inputs) {
    UseTimes(input);
    if (nodes) input.nodes = kNodes;
  }
  if (!other_profile) inputs[1].bins[0].budget_bytes += inputs[1].bins[0].budget_bytes / 20;
  SolveHints hints;
  if (!SolvePlacement(inputs[1], &hints).ok()) std::abort();
  const auto with = SolvePlacement(inputs[0], &hints), without = SolvePlacement(inputs[0]);
  if (PlanChecksum(*with) != PlanChecksum(*without)) {
    state.SkipWithError("hints change the plan");
    return;
  }
  size_t i = 1;
  for (auto _ : state) benchmark::DoNotOptimize(SolvePlacement(inputs[i++ % 2], &hints));
}
BENCHMARK_CAPTURE(BM_Again, re_solve, true, false)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_Again, other_budget, false, false)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_Again, re_solve_two_nodes, true, true)->Unit(benchmark::kMillisecond);

enum class Shape { kTwoSizes, kTwoNodes, kTwoBins };

void BM_Shapes(benchmark::State& state, Shape shape) {
  const Profile frequency = PowerLawProfile(), reads = Reads(frequency);
  SolveInput input = Input(frequency, reads);
  UseTimes(input);
  if (shape == Shape::kTwoNodes) input.nodes = kNodes;
  if (shape == Shape::kTwoSizes) {
    for (size_t l = 0; l < input.layers.size(); l += 2) input.layers[l].bundle_bytes /= 2;
  }
  if (shape == Shape::kTwoBins) {
    input.bins[0].budget_bytes /= 2;
    input.bins.push_back(input.bins[0]);
    for (size_t l = kLayers / 2; l < kLayers; ++l) input.layers[l].bin = 1;
  }
  for (auto _ : state) benchmark::DoNotOptimize(SolvePlacement(input));
}
BENCHMARK_CAPTURE(BM_Shapes, two_sizes, Shape::kTwoSizes)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_Shapes, two_nodes, Shape::kTwoNodes)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_Shapes, two_bins, Shape::kTwoBins)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace isotherm

BENCHMARK_MAIN();
