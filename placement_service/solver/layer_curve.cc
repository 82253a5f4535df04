#include "placement_service/solver/layer_curve.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>

#include "placement_service/solver/scan_values.h"

namespace isotherm {
namespace {

// On what decides whether a stretch can be pooled with what is not known: for rounding.
constexpr double kSlack = 1 + 1e-6;

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
  if (items.size() < kBuckets / 4) {
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
    double count;
    double mean() const { return sum / count; }
    bool operator>(const Stretch& other) const { return sum * other.count > other.sum * count; }
  };
  std::vector<Stretch> stretches;
  stretches.reserve(items.size());
  for (const Item& item : items) {
    stretches.push_back({item.gain, 1});
    while (stretches.size() > 1 && stretches.back() > stretches[stretches.size() - 2]) {
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
    const size_t end = at + static_cast<size_t>(stretch.count);
    const auto mean = static_cast<float>(stretch.mean());
    while (at < end) items[at++].gain = mean;
    ends.push_back(end);
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

LayerCurve::LayerCurve(std::span<const float> reads, const ReadsWindow& window) : reads_(reads) {
  const size_t words = (reads.size() + 63) / 64;
  above_.resize(words);
  std::vector<uint64_t> within(words);
  const WindowScan scan = ScanWindow(reads, window.low, window.high, above_.data(), within.data());
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
  double bytes = 0;    // of all its neurons
  double taken = 0;    // of those that are hot
  float low = 0;       // what is neither in `items` nor above them is below
  bool all = true;     // nothing is below
  bool hot = false;    // one of its neurons is
  float least = 0;     // no hot one has fewer
  bool given = false;  // the last one of them was in `items`
  // Factor times the bytes of its cold neurons; of sums that are exact, whatever the order.
  double left = 0;
  bool done() const { return all && next == items.size(); }
  // No neuron left has more.
  double most() const { return next < items.size() ? items[next].gain : low; }
  const Item& Take() {
    const Item& item = items[next++];
    taken += item.gain;
    left = factor * (bytes - taken);
    least = item.gain;
    hot = given = true;
    return item;
  }
};

// The node of the neurons from `begin` on. Those above the window are hot from the start.
LayerCurve::Node LayerCurve::SortNode(int64_t begin, int64_t end, const SolveNode& node,
                                      const ReadsWindow& window) {
  const auto reads = reads_.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  Node out{.factor = node.cost_factor, .low = window.low};
  const size_t words = (reads.size() + 63) / 64;
  std::vector<uint64_t> above(words), within(words);
  out.bytes = ScanWindow(reads, window.low, window.high, above.data(), within.data()).sum;
  size_t num_above = 0, num_within = 0;
  for (size_t word = 0; word < words; ++word) {
    num_above += static_cast<size_t>(std::popcount(above[word]));
    num_within += static_cast<size_t>(std::popcount(within[word]));
  }
  out.all = num_above + num_within == reads.size();
  const auto each = [](uint64_t bits, size_t word, const auto& visit) {
    for (; bits != 0; bits &= bits - 1) {
      visit(word * 64 + static_cast<size_t>(std::countr_zero(bits)));
    }
  };
  if (num_above > 0) {
    out.hot = true;
    out.least = window.high;
    first_ += static_cast<int64_t>(num_above);
    for (size_t word = 0; word < words; ++word) {
      each(above[word], word, [&](size_t n) { out.taken += reads[n]; });
      const size_t at = static_cast<size_t>(begin) + word * 64;
      above_[at / 64] |= above[word] << (at % 64);
      if (at % 64 != 0 && at / 64 + 1 < above_.size()) {
        above_[at / 64 + 1] |= above[word] >> (64 - at % 64);
      }
    }
  }
  out.left = out.factor * (out.bytes - out.taken);
  out.items.reserve(num_within);
  for (size_t word = 0; word < words; ++word) {
    each(within[word], word, [&](size_t n) {
      out.items.push_back({reads[n], static_cast<int32_t>(begin + static_cast<int64_t>(n))});
    });
  }
  SortFalling(out.items);
  return out;
}

LayerCurve::LayerCurve(std::span<const float> reads, std::span<const SolveNode> nodes,
                       std::span<const ReadsWindow> windows)
    : reads_(reads), above_((reads.size() + 63) / 64) {
  std::vector<Node> states;
  for (size_t m = 0; m < nodes.size(); ++m) {
    const auto [begin, end] = NodeRange(nodes, m, size());
    states.push_back(SortNode(begin, end, nodes[m], windows[m]));
    total_bytes_ += states.back().bytes;
    const double cold = nodes[m].cost_factor * states.back().bytes;
    total_ = m == 0 ? cold : std::max(total_, cold);
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
  // Null: the next neuron is not known.
  const auto slowest_node = [&]() -> Node* {
    Node* take = nullptr;
    for (Node& node : nodes) {
      if (!node.done() && (take == nullptr || node.left > take->left)) take = &node;
    }
    return take == nullptr || take->next == take->items.size() ? nullptr : take;
  };
  // Taken one by one the neurons above the windows would have been hot at the same time only if
  // none of the nodes had given its last one while another one was slower. A node that gave one
  // since was the slowest then; of another the last one is what it had more.
  const auto one_by_one = [&] {
    const double wait = slowest();
    return std::all_of(nodes.begin(), nodes.end(), [&](const Node& node) {
      return node.given || !node.hot || node.left + node.factor * node.least >= wait;
    });
  };
  while (!one_by_one()) {
    Node* const take = slowest_node();
    if (take == nullptr) break;
    MakeHotFirst(take->Take().neuron);
  }
  size_t sorted = 0;
  for (const Node& node : nodes) sorted += node.items.size() - node.next;
  items_.reserve(sorted);
  gain_sums_.reserve(sorted + 1);
  byte_sums_.reserve(sorted + 1);
  double wait = slowest();
  gain_sums_.push_back(total_ - wait);
  double taken = 0;
  for (const Node& node : nodes) taken += node.taken;
  byte_sums_.push_back(taken);
  if (!one_by_one()) return;  // covers nothing
  const Before before = BoundBefore(nodes, wait);
  while (Node* const take = slowest_node()) {
    const Item& item = take->Take();
    taken += item.gain;
    const double now = slowest();
    items_.push_back({static_cast<float>(wait - now), item.neuron});
    wait = now;
    gain_sums_.push_back(total_ - now);
    byte_sums_.push_back(taken);
  }
  std::vector<size_t> ends = PoolRising(items_);
  if (last() < size()) DropUnsure(nodes, wait, ends);
  if (first_ > 0) DropUnsureBefore(before, ends);
}

void LayerCurve::MakeHotFirst(int32_t neuron) {
  above_[static_cast<size_t>(neuron) / 64] |= uint64_t{1} << (neuron % 64);
  ++first_;
}

// The last j neurons before a wait W took off at least (j - debt) / rate: a node that then has
// `left` gave at most (W' - left) / (factor * least) neurons since the wait was W', so
//   j <= sum over nodes of (W' - left) / (factor * least) = (W' - W) * rate + debt.
LayerCurve::Before LayerCurve::BoundBefore(std::span<const Node> nodes, double wait) {
  Before out;
  for (const Node& node : nodes) {
    if (!node.hot) continue;
    if (node.least <= 0) return {.rate = std::numeric_limits<double>::infinity()};
    out.rate += 1 / (node.factor * node.least);
    out.debt += (wait - node.left) / (node.factor * node.least);
  }
  return out;
}

// The first items could have been pooled with neurons before them. A stretch stays as it is when
// no j of those, with the e items up to it, have a smaller mean: (j - debt) / rate + their gain of
// at least mean * (j + e) for all j.
void LayerCurve::DropUnsureBefore(const Before& before, std::span<const size_t> ends) {
  size_t sure = items_.size();
  for (const size_t end : ends) {
    if (end >= items_.size()) break;
    const double mean = items_[end].gain * kSlack;
    const double gain = gain_sums_[end] - gain_sums_[0] - before.debt / before.rate;
    if (mean * before.rate <= 1 && gain >= mean * static_cast<double>(end)) {
      sure = end;
      break;
    }
  }
  for (size_t i = 0; i < sure; ++i) MakeHotFirst(items_[i].neuron);
  const auto count = static_cast<std::ptrdiff_t>(sure);
  items_.erase(items_.begin(), items_.begin() + count);
  gain_sums_.erase(gain_sums_.begin(), gain_sums_.begin() + count);
  byte_sums_.erase(byte_sums_.begin(), byte_sums_.begin() + count);
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
