#pragma once

#include <cstdint>

namespace isotherm::gpu {

// One draw that needs nothing but the logits; a device can make it without the host. A candidate's
// weight is exp((logit - top) * inverse_temperature) in units of 2^-40, cut to an integer, so that
// sums do not depend on their order. Candidates are the logits from `top + floor` on, of which the
// top_k largest (0: all), of which the fewest largest that have the share top_p of the weight
// stay; of equals those with lower ids. The token is the first, by id, at which the sum of what
// stays exceeds `bits` / 2^64 of it.
struct PlainDraw {
  bool greedy = false;  // the lowest id among the largest; nothing else counts
  float inverse_temperature = 1;
  float floor = 0;  // not positive
  int32_t top_k = 0;
  float top_p = 1;
  uint64_t bits = 0;
};
inline constexpr float kDrawUnit = 0x1p40f;  // weight of the largest logit

}  // namespace isotherm::gpu
