#include "bench/synthetic/activity.h"

#include <cmath>
#include <numbers>
#include <numeric>
#include <utility>

#include "bench/synthetic/random_stream.h"

namespace isotherm::bench {
namespace {

template <typename T>
void Shuffle(std::vector<T>& items, RandomStream& random) {
  for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[random.Below(i)]);
}

}  // namespace

double NormalCdf(double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }

double Probit(double p) {
  // Newton's steps on log(CDF) from the tail's asymptote; the logarithm is concave, so that they
  // converge from below for any p.
  const bool upper = p > 0.5;
  const double tail = upper ? 1 - p : p;
  double x = tail < 0.1 ? -std::sqrt(-2 * std::log(tail)) : -1.5;
  for (int i = 0; i < 60; ++i) {
    const double cdf = NormalCdf(x);
    const double density = std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi);
    const double step = std::log(tail / cdf) * cdf / density;
    x += step;
    if (std::abs(step) < 1e-13) break;
  }
  return upper ? -x : x;
}

double MeanSquareOfRelu(double t) {
  const double density = std::exp(-t * t / 2) / std::sqrt(2 * std::numbers::pi);
  return (t * t + 1) * NormalCdf(t) + t * density;
}

double DesignedActivity(const SyntheticOptions& o, int64_t rank) {
  const double u = (static_cast<double>(rank) + 0.5) / static_cast<double>(o.ffn_dim);
  return o.mean_activity * (o.skew + 1) * std::pow(1 - u, o.skew);
}

int64_t NumTokenClasses(const SyntheticOptions& options) { return options.drift > 0 ? 2 : 1; }

int64_t TokenClass(const SyntheticOptions& options, int64_t token) {
  return options.drift > 0 && token >= options.vocab_size / 2 ? 1 : 0;
}

std::vector<int32_t> NeuronRanks(const SyntheticOptions& o, int64_t layer, int64_t token_class) {
  std::vector<int32_t> ranks(static_cast<size_t>(o.ffn_dim));
  std::iota(ranks.begin(), ranks.end(), 0);
  RandomStream random({o.seed, RandomPurpose::kRanks, layer});
  Shuffle(ranks, random);
  if (token_class == 0) return ranks;
  RandomStream drifting({o.drift_seed, RandomPurpose::kDrift, layer});
  std::vector<int32_t> chosen(ranks.size());
  std::iota(chosen.begin(), chosen.end(), 0);
  Shuffle(chosen, drifting);
  chosen.resize(static_cast<size_t>(std::llround(o.drift * static_cast<double>(o.ffn_dim))));
  std::vector<int32_t> moved;
  for (const int32_t neuron : chosen) moved.push_back(ranks[static_cast<size_t>(neuron)]);
  Shuffle(moved, drifting);
  for (size_t i = 0; i < chosen.size(); ++i) ranks[static_cast<size_t>(chosen[i])] = moved[i];
  return ranks;
}

}  // namespace isotherm::bench
