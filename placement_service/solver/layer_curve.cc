#include "placement_service/solver/layer_curve.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>

#include "placement_service/solver/scan_values.h"

namespace isotherm {
namespace {

// Orders as the float does, with -0 beside 0.
uint32_t FallingKey(float value) {
  const auto bits = std::bit_cast<uint32_t>(value + 0.0f);
  return (bits >> 31) != 0 ? bits : ~bits & 0x7fffffffu;
}

// By falling gain; equal ones stay in order. Three passes of eleven bits: a third of the time that
// a comparison sort of 49,152 items takes.
template <typename Item>
void SortFalling(std::vector<Item>& items) {
  constexpr int kBits = 11, kPasses = 3;
  constexpr size_t kBuckets = size_t{1} << kBits;
  if (items.size() < kBuckets) {
    std::stable_sort(items.begin(), items.end(),
                     [](const Item& a, const Item& b) { return a.gain > b.gain; });
    return;
  }
  std::vector<std::array<uint32_t, kBuckets>> starts(kPasses);
  for (auto& start : starts) start.fill(0);
  for (const Item& item : items) {
    const uint32_t key = FallingKey(item.gain);
    for (int pass = 0; pass < kPasses; ++pass) {
      ++starts[static_cast<size_t>(pass)][key >> (pass * kBits) & (kBuckets - 1)];
    }
  }
  std::vector<Item> other(items.size());
  for (int pass = 0; pass < kPasses; ++pass) {
    auto& start = starts[static_cast<size_t>(pass)];
    uint32_t sum = 0;
    for (uint32_t& count : start) sum += std::exchange(count, sum);
    for (const Item& item : items) {
      other[start[FallingKey(item.gain) >> (pass * kBits) & (kBuckets - 1)]++] = item;
    }
    items.swap(other);
  }
}

// Gains that rise are replaced by the mean of the stretch they end, so that none is more than the
// one before and the sums at the ends of stretches stay: the upper hull of the sums. Returns the
// ends: how many items there are up to each.
template <typename Item>
std::vector<size_t> PoolRising(std::vector<Item>& items) {
  struct Stretch {
    double sum;
    size_t count;
    double mean() const { return sum / static_cast<double>(count); }
  };
  std::vector<Stretch> stretches;
  stretches.reserve(items.size());
  for (const Item& item : items) {
    stretches.push_back({item.gain, 1});
    while (stretches.size() > 1 &&
           stretches.back().mean() > stretches[stretches.size() - 2].mean()) {
      const Stretch top = stretches.back();
      stretches.pop_back();
      stretches.back().sum += top.sum;
      stretches.back().count += top.count;
    }
  }
  size_t at = 0;
  std::vector<size_t> ends;
  ends.reserve(stretches.size());
  for (const Stretch& stretch : stretches) {
    for (size_t i = 0; i < stretch.count; ++i)
      items[at++].gain = static_cast<float>(stretch.mean());
    ends.push_back(at);
  }
  return ends;
}

}  // namespace

std::pair<int64_t, int64_t> NodeRange(std::span<const SolveNode> nodes, size_t node,
                                      int64_t num_neurons) {
  const auto end = [&](size_t n) {
    return n + 1 == nodes.size()
               ? num_neurons
               : static_cast<int64_t>(nodes[n].share_end * static_cast<double>(num_neurons));
  };
  return {node == 0 ? 0 : end(node - 1), end(node)};
}

LayerCurve::LayerCurve(std::span<const float> reads, float low, float high) : reads_(reads) {
  const size_t words = (reads.size() + 63) / 64;
  above_.resize(words);
  std::vector<uint64_t> within(words);
  const WindowScan scan = ScanWindow(reads, low, high, above_.data(), within.data());
  size_t count = 0;
  for (size_t word = 0; word < words; ++word) {
    first_ += std::popcount(above_[word]);
    count += static_cast<size_t>(std::popcount(within[word]));
  }
  items_.reserve(count);
  for (size_t word = 0; word < words; ++word) {
    for (uint64_t bits = within[word]; bits != 0; bits &= bits - 1) {
      const size_t n = word * 64 + static_cast<size_t>(std::countr_zero(bits));
      items_.push_back({reads[n], static_cast<int32_t>(n)});
    }
  }
  total_ = scan.sum;
  total_bytes_ = total_;
  SortFalling(items_);
  gain_sums_.reserve(items_.size() + 1);
  gain_sums_.push_back(scan.above_sum);
  for (const Item& item : items_) gain_sums_.push_back(gain_sums_.back() + item.gain);
}

// A NUMA node's neurons while they are taken one by one.
struct LayerCurve::Node {
  std::vector<Item> items;  // sorted
  size_t next = 0;
  double factor = 1;
  double left = 0;   // factor times the bytes of its cold neurons
  double bytes = 0;  // of all its neurons
  float low = 0;     // what is not in `items` is below
  bool all = true;   // is in `items`
  bool done() const { return all && next == items.size(); }
  // No neuron left has more.
  double most() const { return next < items.size() ? items[next].gain : low; }
};

LayerCurve::Node LayerCurve::SortNode(std::span<const float> reads, const SolveNode& node,
                                      float low, int64_t begin) {
  Node out{.factor = node.cost_factor, .low = low};
  const size_t words = (reads.size() + 63) / 64;
  std::vector<uint64_t> above(words), within(words);
  const WindowScan scan =
      ScanWindow(reads, low, std::numeric_limits<float>::infinity(), above.data(), within.data());
  out.bytes = scan.sum;
  out.left = out.factor * out.bytes;
  size_t count = 0;
  for (const uint64_t word : within) count += static_cast<size_t>(std::popcount(word));
  out.all = count == reads.size();
  out.items.reserve(count);
  for (size_t word = 0; word < words; ++word) {
    for (uint64_t bits = within[word]; bits != 0; bits &= bits - 1) {
      const size_t n = word * 64 + static_cast<size_t>(std::countr_zero(bits));
      out.items.push_back({reads[n], static_cast<int32_t>(begin + static_cast<int64_t>(n))});
    }
  }
  SortFalling(out.items);
  return out;
}

LayerCurve::LayerCurve(std::span<const float> reads, std::span<const SolveNode> nodes,
                       std::span<const float> low)
    : reads_(reads) {
  std::vector<Node> states;
  for (size_t m = 0; m < nodes.size(); ++m) {
    const auto [begin, end] = NodeRange(nodes, m, size());
    states.push_back(
        SortNode(reads.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)),
                 nodes[m], low[m], begin));
    total_bytes_ += states.back().bytes;
  }
  TakeFromSlowest(states);
}

// Fills items_ and the sums, until a node would have to give a neuron that is not sorted.
void LayerCurve::TakeFromSlowest(std::vector<Node>& nodes) {
  const auto slowest = [&] {
    double most = -std::numeric_limits<double>::infinity();
    for (const Node& node : nodes) most = std::max(most, node.left);
    return most;
  };
  size_t sorted = 0;
  for (const Node& node : nodes) sorted += node.items.size();
  total_ = slowest();
  items_.reserve(sorted);
  gain_sums_.reserve(sorted + 1);
  byte_sums_.reserve(sorted + 1);
  gain_sums_.push_back(0);
  byte_sums_.push_back(0);
  double wait = total_;
  while (items_.size() < reads_.size()) {
    Node* take = nullptr;
    for (Node& node : nodes) {
      if (!node.done() && (take == nullptr || node.left > take->left)) take = &node;
    }
    if (take->next == take->items.size()) break;
    const Item item = take->items[take->next++];
    take->left -= take->factor * item.gain;
    const double now = slowest();
    items_.push_back({static_cast<float>(wait - now), item.neuron});
    wait = now;
    gain_sums_.push_back(total_ - now);
    byte_sums_.push_back(byte_sums_.back() + item.gain);
  }
  const std::vector<size_t> ends = PoolRising(items_);
  if (items_.size() < reads_.size()) DropUnsure(nodes, wait, ends);
}

// What comes after the items could still be pooled with the last of them. From the wait W that they
// leave, j further neurons take off at most (j + debt) / rate: a node that now has `left` must give
// at least (left - W') / (factor * most) neurons before the wait is W', so
//   j >= sum over nodes of (left - W') / (factor * most) = (W - W') * rate - debt
//   with rate = sum of 1 / (factor * most), debt = sum of (W - left) / (factor * most).
// A stretch whose mean no continuation can reach stays as it is; a millionth is left for rounding.
void LayerCurve::DropUnsure(std::span<const Node> nodes, double wait,
                            std::span<const size_t> ends) {
  double rate = 0, debt = 0;
  for (const Node& node : nodes) {
    if (node.done()) continue;
    rate += 1 / (node.factor * node.most());
    debt += (wait - node.left) / (node.factor * node.most());
  }
  constexpr double kSlack = 1 + 1e-6;
  size_t sure = 0;
  for (size_t stretch = ends.size(); stretch-- > 0 && sure == 0;) {
    const size_t end = ends[stretch];
    const double mean = items_[end - 1].gain;
    const double later = static_cast<double>(items_.size() - end);
    const double most = gain_sums_.back() - gain_sums_[end] + debt / rate;
    if (mean * rate >= kSlack && most * kSlack <= mean * later) {
      sure = end;
    }
  }
  items_.resize(sure);
  gain_sums_.resize(sure + 1);
  byte_sums_.resize(sure + 1);
}

int64_t LayerCurve::CountAtLeast(double gain) const {
  const auto end = std::partition_point(items_.begin(), items_.end(),
                                        [&](const Item& item) { return item.gain >= gain; });
  return first_ + (end - items_.begin());
}

float LayerCurve::ReadsAt(int64_t k, int64_t begin, int64_t end) const {
  const auto within = [&](const Item& item) { return begin <= item.neuron && item.neuron < end; };
  const auto edge = items_.begin() + (k - first_);
  const auto before = std::find_if(std::make_reverse_iterator(edge), items_.rend(), within);
  if (before != items_.rend()) return reads_[static_cast<size_t>(before->neuron)];
  const auto after = std::find_if(edge, items_.end(), within);
  return after != items_.end() ? reads_[static_cast<size_t>(after->neuron)] : 0;
}

void LayerCurve::Select(int64_t k, LayerPlacement& placement) const {
  if (first_ > 0) placement.hot = above_;
  for (size_t i = 0; i < Index(k); ++i) {
    const auto neuron = static_cast<size_t>(items_[i].neuron);
    placement.hot[neuron / 64] |= uint64_t{1} << (neuron % 64);
  }
  placement.num_hot = k;
}

}  // namespace isotherm
