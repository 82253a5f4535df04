#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace isotherm {

using TokenId = int32_t;
using SequenceId = int64_t;

// Sampling of one sequence, every default resolved and every bound checked by the gateway.
struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy
  float top_p = 1.0f;
  int32_t top_k = 0;  // 0: off
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  int64_t seed = 0;
  std::vector<std::pair<TokenId, float>> logit_bias;
};

}  // namespace isotherm
