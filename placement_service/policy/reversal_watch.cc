#include "placement_service/policy/reversal_watch.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace isotherm {
namespace {

// A neuron that comes back within so many half-lives has not gone for a reason that lasts.
constexpr double kSoon = 4;
// The share of such moves at which the memory is doubled, and how fast the share follows, per
// neuron moved as a part of the set.
constexpr double kTooMany = 0.3;
// Half-lives without many reversals after which the memory is halved again.
constexpr double kCalm = 8;
constexpr float kNever = -std::numeric_limits<float>::infinity();

}  // namespace

void ReversalWatch::Moved(const std::vector<LayerPlacement>& before,
                          const std::vector<LayerPlacement>& after, double tokens,
                          double half_life) {
  if (before.size() != after.size()) return;
  if (moved_at_.size() != after.size()) {
    moved_at_.clear();
    for (const LayerPlacement& layer : after) {
      moved_at_.emplace_back(static_cast<size_t>(layer.num_neurons), kNever);
    }
  }
  int64_t moved = 0, reversed = 0, hot = 0;
  for (size_t l = 0; l < after.size(); ++l) {
    hot += after[l].num_hot;
    for (size_t word = 0; word < after[l].hot.size(); ++word) {
      for (uint64_t bits = after[l].hot[word] ^ before[l].hot[word]; bits != 0; bits &= bits - 1) {
        float& last = moved_at_[l][word * 64 + static_cast<size_t>(std::countr_zero(bits))];
        ++moved;
        reversed += tokens - static_cast<double>(last) < kSoon * half_life ? 1 : 0;
        last = static_cast<float>(tokens);
      }
    }
  }
  if (moved == 0) return;
  // A tenth of the set moved once replaces what was known of earlier moves.
  const double weight = std::min(
      1.0, 5.0 * static_cast<double>(moved) / static_cast<double>(std::max<int64_t>(1, hot)));
  const double share = static_cast<double>(reversed) / static_cast<double>(moved);
  reversed_ += weight * (share - reversed_);
  if (reversed_ > kTooMany / 2) changed_at_ = tokens;
}

double ReversalWatch::Memory(double tokens, double half_life) {
  if (reversed_ > kTooMany && memory_ < kMaxMemory) {
    memory_ *= 2;
    reversed_ = 0;
    changed_at_ = tokens;
  } else if (memory_ > 1 && tokens - changed_at_ > kCalm * half_life) {
    memory_ /= 2;
    changed_at_ = tokens;
  }
  return memory_;
}

}  // namespace isotherm
