#include "gpu_worker/host/cold_balance.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace isotherm::gpu {
namespace {

// A tenth of the way at a time: the active set changes from token to token, and one of them says
// little.
constexpr float kGain = 0.1f;
// No single outcome moves the share further: a thread that lost its core for milliseconds says
// nothing about the next layer.
constexpr float kLargestStep = 0.05f;
// The cpu_worker always keeps some, or nothing more would be learnt.
constexpr float kLargestShare = 0.9f;
// What is longer was no hand-off but a core lost to somebody else.
constexpr float kLongestHandoffUs = 100.0f;
constexpr float kForget = 0.98f;

}  // namespace

ColdBalance::ColdBalance(int64_t num_layers, int64_t num_neurons)
    : num_neurons_(num_neurons),
      words_((num_neurons + 63) / 64),
      states_(static_cast<size_t>(num_layers * kSizes)) {}

int64_t ColdBalance::IndexOf(int64_t layer, int64_t num_rows) const {
  return layer * kSizes + (num_rows == 1 ? 0 : num_rows <= 16 ? 1 : 2);
}

int32_t ColdBalance::Cut(int64_t layer, const uint64_t* active, int64_t num_rows,
                         const uint64_t* cold) const {
  const auto together = [&](int64_t word) {
    uint64_t bits = 0;
    for (int64_t row = 0; row < num_rows; ++row) bits |= active[row * words_ + word];
    return bits & cold[word];
  };
  const float share = StateOf(layer, num_rows).share;
  if (share <= 0) return static_cast<int32_t>(num_neurons_);
  int64_t count = 0;
  for (int64_t word = 0; word < words_; ++word) count += std::popcount(together(word));
  int64_t left = std::lround(share * static_cast<float>(count));
  if (left > 0 && left == count) return 0;
  for (int64_t word = words_ - 1; left > 0 && word >= 0; --word) {
    uint64_t bits = together(word);
    if (const int64_t here = std::popcount(bits); here < left) {
      left -= here;
      continue;
    }
    while (--left > 0) bits ^= std::bit_floor(bits);
    return static_cast<int32_t>(word * 64 + std::bit_width(bits) - 1);
  }
  return static_cast<int32_t>(num_neurons_);
}

void ColdBalance::Learn(int64_t layer, int64_t num_rows, const Outcome& outcome) {
  State& state = states_[static_cast<size_t>(IndexOf(layer, num_rows))];
  const bool waited = outcome.wait_us > 0;
  if (waited) {
    const float handoff = outcome.own_us + outcome.wait_us - outcome.cold_us;
    state.handoff_us += kGain * (std::clamp(handoff, 0.0f, kLongestHandoffUs) - state.handoff_us);
  } else {
    // It was shorter than this, nobody knows by how much; so the share creeps back until it is
    // waited for again.
    state.handoff_us =
        kForget * std::clamp(outcome.own_us - outcome.cold_us, 0.0f, state.handoff_us);
  }
  // By how much the cpu_worker was later than this side. When it was earlier nobody saw when, so
  // that is told from how long it computed.
  const float late = waited ? outcome.wait_us
                            : std::min(0.0f, outcome.cold_us + state.handoff_us - outcome.own_us);
  // What all active cold neurons would take it.
  const float all_cold_us = std::max(1.0f, outcome.cold_us) / (1 - state.share);
  const float step = kGain * (late / 2) / all_cold_us;
  state.share =
      std::clamp(state.share + std::clamp(step, -kLargestStep, kLargestStep), 0.0f, kLargestShare);
}

}  // namespace isotherm::gpu
