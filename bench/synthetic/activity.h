#pragma once

#include <cstdint>
#include <vector>

#include "bench/synthetic/synthetic_options.h"

namespace isotherm::bench {

// Probability that a standard normal variable is below `x`, and its inverse for 0 < p < 1.
double NormalCdf(double x);
double Probit(double p);
// E[max(0, t + N)^2] for a standard normal N.
double MeanSquareOfRelu(double t);

// p(u) of the neuron with that rank, 0 .. ffn_dim - 1: u is the middle of its share.
double DesignedActivity(const SyntheticOptions& options, int64_t rank);

// Classes of tokens: 1 without drift, 2 with. Class 1 is the vocabulary's upper half.
int64_t NumTokenClasses(const SyntheticOptions& options);
int64_t TokenClass(const SyntheticOptions& options, int64_t token);

// Rank of each neuron of the layer for tokens of that class: a seeded permutation.
std::vector<int32_t> NeuronRanks(const SyntheticOptions& options, int64_t layer,
                                 int64_t token_class);

}  // namespace isotherm::bench
