#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "common/step/placement_plan.h"
#include "placement_service/solver/solve_placement.h"

namespace isotherm {

// Of a node, or of a layer without nodes: what has more reads than `high` is not sorted and the
// best, what has fewer than `low` is not looked at. Finite ones are above 0.
struct ReadsWindow {
  float low = -std::numeric_limits<float>::infinity();
  float high = std::numeric_limits<float>::infinity();
};

// What a layer gains by keeping its k best neurons hot, for each k. Only a window of neurons around
// an expected threshold is sorted; those above it count as one block, those below are not looked
// at until somebody asks for a wider window. Covers() tells whether a k can be trusted.
class LayerCurve {
 public:
  // `reads` outlives the curve.
  LayerCurve(std::span<const float> reads, const ReadsWindow& window);
  // Several NUMA nodes: a neuron is taken from the node that is the slowest at the time, and gains
  // what the layer's wait gets shorter. windows[node].
  LayerCurve(std::span<const float> reads, std::span<const SolveNode> nodes,
             std::span<const ReadsWindow> windows);

  int64_t size() const { return static_cast<int64_t>(reads_.size()); }
  // What the layer waits for while every neuron is cold: bytes, times the slowest node's factor.
  double total() const { return total_; }
  double total_bytes() const { return total_bytes_; }  // of all neurons
  int64_t first() const { return first_; }
  int64_t last() const { return first_ + static_cast<int64_t>(items_.size()); }
  bool Covers(int64_t k) const {
    return (k > first() || first() == 0) && (k < last() || last() == size());
  }
  // Of the sorted neurons with ids within [begin, end): the reads of the last one among the k best,
  // else of the first one after; k within [first(), last()]. 0: there is none.
  float ReadsAt(int64_t k, int64_t begin, int64_t end) const;

  // For k within [first(), last()]: what the k best take off total() together, and the bytes that
  // the hot side then reads.
  double GainOf(int64_t k) const { return gain_sums_[Index(k)]; }
  double HotBytes(int64_t k) const { return byte_sums_.empty() ? GainOf(k) : byte_sums_[Index(k)]; }
  // Of the k-th best, k within (first(), last()]: never more than the one before.
  double Marginal(int64_t k) const { return items_[Index(k) - 1].gain; }
  // How many have a marginal gain of at least `gain`; within [first(), last()].
  int64_t CountAtLeast(double gain) const;

  // Makes the k best hot; `placement` has none before.
  void Select(int64_t k, LayerPlacement& placement) const;

 private:
  struct Item {
    float gain;
    int32_t neuron;
  };
  struct Node;
  size_t Index(int64_t k) const { return static_cast<size_t>(k - first_); }
  struct Before {  // of neurons that came before the first item
    double rate = 0, debt = 0;
  };
  Node SortNode(int64_t begin, int64_t end, const SolveNode& node, const ReadsWindow& window);
  void TakeFromSlowest(std::vector<Node>& nodes);
  void MakeHotFirst(int32_t neuron);
  static Before BoundBefore(std::span<const Node> nodes, double wait);
  void DropUnsureBefore(const Before& before, std::span<const size_t> ends);
  void DropUnsure(std::span<const Node> nodes, double wait, std::span<const size_t> ends);

  const std::span<const float> reads_;
  std::vector<uint64_t> above_;    // neurons above the window, which are not in items_; or empty
  int64_t first_ = 0;              // how many those are
  std::vector<Item> items_;        // by falling gain, then rising id
  std::vector<double> gain_sums_;  // [items + 1], those above the window in it
  std::vector<double> byte_sums_;  // the same for several nodes; else empty
  double total_ = 0;
  double total_bytes_ = 0;
};

// The ids of a layer that belong to node `node`: [first, second).
std::pair<int64_t, int64_t> NodeRange(std::span<const SolveNode> nodes, size_t node,
                                      int64_t num_neurons);

}  // namespace isotherm
