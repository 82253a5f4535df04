#include "placement_service/solver/bin_solver.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <queue>

#include "common/base/checked_math.h"

namespace isotherm {
namespace {

// Layers of fewer neurons are sorted whole.
constexpr int64_t kMinWindowed = 4096;
// Around the threshold that a sample suggests, and around the last plan's, which a second's traffic
// moves little. A few percent and one percent of the neurons lie within and are sorted; a layer
// whose window proves too narrow gets a wider one. Of several nodes a sample of each says less, and
// a sorted neuron takes longer.
constexpr float kSampledWindow = 1.12f, kHintedWindow = 1.04f;
constexpr float kNodesSampledWindow = 1.15f, kNodesHintedWindow = 1.03f;
// No use looking for a threshold any more.
constexpr float kWidestWindow = 2;
constexpr int64_t kSampled = 1024;  // neurons of a layer

}  // namespace

BinSolver::BinSolver(const SolveBin& bin, std::span<const SolveNode> nodes,
                     const std::vector<LayerInput>& layers, std::vector<float> thresholds)
    : bin_(bin),
      nodes_(nodes),
      by_node_(nodes.size() > 1 || (nodes.size() == 1 && nodes[0].cost_factor != 1)),
      thresholds_(std::move(thresholds)) {
  for (const LayerInput& input : layers) layers_.push_back({.input = input});
  const bool windowed = std::all_of(layers_.begin(), layers_.end(), [](const Layer& layer) {
    return static_cast<int64_t>(layer.input.reads.size()) >= kMinWindowed;
  });
  float window = by_node_ ? kNodesHintedWindow : kHintedWindow;
  if (windowed && thresholds_.empty()) {
    window = by_node_ ? kNodesSampledWindow : kSampledWindow;
    SampleThresholds();
  }
  for (size_t l = 0; l < layers_.size(); ++l) {
    BuildCurve(l,
               windowed ? std::span(thresholds_).subspan(l * per_layer(), per_layer())
                        : std::span<const float>(),
               window);
  }
}

bool BinSolver::finite(size_t layer) const {
  return std::isfinite(layers_[layer].curve->total_bytes());
}

// The same problem with every so-many-th neuron, each standing for its neighbours.
void BinSolver::SampleThresholds() {
  std::vector<std::vector<float>> samples;
  std::vector<LayerInput> inputs;
  std::vector<float> scales;
  for (const Layer& layer : layers_) {
    const std::span<const float> reads = layer.input.reads;
    const size_t stride = reads.size() / static_cast<size_t>(kSampled);
    std::vector<float> sample;
    for (size_t n = 0; n < reads.size(); n += stride) sample.push_back(reads[n]);
    scales.push_back(static_cast<float>(reads.size()) / static_cast<float>(sample.size()));
    for (float& value : sample) value *= scales.back();
    inputs.push_back({.bundle_bytes = std::max<int64_t>(
                          1, static_cast<int64_t>(static_cast<double>(layer.input.bundle_bytes) *
                                                  scales.back()))});
    samples.push_back(std::move(sample));
  }
  for (size_t l = 0; l < inputs.size(); ++l) inputs[l].reads = samples[l];
  // Samples are shorter than a window is worth, so this ends here.
  BinSolver small(bin_, nodes_, std::move(inputs),
                  std::vector<float>(layers_.size() * per_layer(), 0));
  small.Solve();
  thresholds_.clear();
  for (size_t l = 0; l < layers_.size(); ++l) {
    for (const float threshold : small.thresholds(l)) thresholds_.push_back(threshold / scales[l]);
  }
}

// `thresholds`: of the layer's nodes, or empty. One that is not above 0 says nothing.
void BinSolver::BuildCurve(size_t index, std::span<const float> thresholds, float window) {
  Layer& layer = layers_[index];
  layer.window = window;
  std::vector<ReadsWindow> windows(per_layer());
  layer.sorted = true;
  for (size_t m = 0; m < thresholds.size(); ++m) {
    if (!(thresholds[m] > 0)) continue;
    windows[m] = {thresholds[m] / window, thresholds[m] * window};
    layer.sorted = false;
  }
  layer.curve = by_node_ ? std::make_unique<LayerCurve>(layer.input.reads, nodes_, windows)
                         : std::make_unique<LayerCurve>(layer.input.reads, windows[0]);
  const LayerCurve& curve = *layer.curve;
  layer.whole_time = bin_.hot_fixed + bin_.hot_per_byte * curve.total_bytes();
  // Cold falls and hot rises with k as long as gains are not negative.
  int64_t low_k = curve.first();
  int64_t high_k = curve.CountAtLeast(0);
  layer.useful = high_k;
  layer.cross = layer.size() + 1;
  const bool balances = bin_.hot_per_byte > 0 || bin_.hot_fixed > bin_.cold_fixed;
  if (!balances || Cold(layer, high_k) >= Hot(layer, high_k)) return;
  while (low_k < high_k) {
    const int64_t middle = low_k + (high_k - low_k) / 2;
    if (Cold(layer, middle) < Hot(layer, middle)) {
      high_k = middle;
    } else {
      low_k = middle + 1;
    }
  }
  layer.cross = high_k;
  const bool before = high_k > curve.first() && Cold(layer, high_k - 1) <= Hot(layer, high_k);
  layer.useful = before ? high_k - 1 : high_k;
}

double BinSolver::Cold(const Layer& layer, int64_t k) const {
  return bin_.cold_fixed + bin_.cold_per_byte * (layer.curve->total() - layer.curve->GainOf(k));
}

double BinSolver::Hot(const Layer& layer, int64_t k) const {
  return bin_.hot_fixed + bin_.hot_per_byte * layer.curve->HotBytes(k);
}

double BinSolver::Time(const Layer& layer, int64_t k) const {
  if (k == layer.size()) return layer.whole_time;
  return std::max(Cold(layer, k), Hot(layer, k));
}

// How many neurons save at least `lambda` of time for each byte they take.
int64_t BinSolver::CountAt(const Layer& layer, double lambda) const {
  const double gain = lambda * static_cast<double>(layer.input.bundle_bytes) / bin_.cold_per_byte;
  return std::min(layer.useful, layer.curve->CountAtLeast(gain));
}

bool BinSolver::PrefersWhole(const Layer& layer, double lambda) const {
  const int64_t k = CountAt(layer, lambda);
  const double price = lambda * static_cast<double>(layer.input.bundle_bytes);
  return layer.whole_time + price * static_cast<double>(layer.size() - k) < Time(layer, k);
}

// The Lagrangian's value: below the time of any hot set that keeps the budget, of parts of neurons
// too.
double BinSolver::BoundAt(double lambda) const {
  double sum = -lambda * static_cast<double>(bin_.budget_bytes);
  for (const Layer& layer : layers_) {
    const double price = lambda * static_cast<double>(layer.input.bundle_bytes);
    const double gain = price / bin_.cold_per_byte;
    const int64_t count = layer.curve->CountAtLeast(std::max(gain, 0.0));
    double least = 0;
    if (count < layer.cross) {
      least = Time(layer, count) + price * static_cast<double>(count);
    } else if (layer.cross <= layer.curve->first()) {
      least = Hot(layer, layer.cross) + price * static_cast<double>(layer.cross);
    } else {
      // A part of the neuron at the balance point makes both sides equal.
      const double excess = Cold(layer, layer.cross - 1) - Hot(layer, layer.cross - 1);
      const double step = (Hot(layer, layer.cross) - Hot(layer, layer.cross - 1)) +
                          (Cold(layer, layer.cross - 1) - Cold(layer, layer.cross));
      const double part = step > 0 ? std::clamp(excess / step, 0.0, 1.0) : 0.0;
      const double time = Hot(layer, layer.cross - 1) +
                          part * (Hot(layer, layer.cross) - Hot(layer, layer.cross - 1));
      least = time + price * (static_cast<double>(layer.cross - 1) + part);
    }
    sum += std::min(least, layer.whole_time + price * static_cast<double>(layer.size()));
  }
  return sum;
}

// No neuron or layer is worth so much a byte.
double BinSolver::MaxLambda() const {
  double most = 1;
  for (const Layer& layer : layers_) {
    const LayerCurve& curve = *layer.curve;
    const double gain = std::max(curve.total(), curve.GainOf(curve.CountAtLeast(0)));
    const double all = bin_.cold_fixed + bin_.cold_per_byte * gain;
    most = std::max(most, 2 * all / static_cast<double>(layer.input.bundle_bytes));
  }
  return most;
}

// bytes_at falls with lambda. Doubles from 0 are in the order of their bits.
template <typename BytesAt>
double BinSolver::SmallestLambda(int64_t budget, const BytesAt& bytes_at) const {
  if (bytes_at(0.0) <= budget) return 0;
  uint64_t low = 0;
  auto high = std::bit_cast<uint64_t>(MaxLambda());
  while (high - low > 1) {
    const uint64_t middle = low + (high - low) / 2;
    (bytes_at(std::bit_cast<double>(middle)) <= budget ? high : low) = middle;
  }
  return std::bit_cast<double>(high);
}

// Sorts more of a layer whose window did not reach. True when there was more to sort.
bool BinSolver::Widen(size_t layer) {
  if (layers_[layer].sorted) return false;
  const float window = std::pow(layers_[layer].window, 4.0f);
  if (window < kWidestWindow) {
    BuildCurve(layer, std::span(thresholds_).subspan(layer * per_layer(), per_layer()), window);
  } else {
    BuildCurve(layer, {}, window);
  }
  return true;
}

// The best plan that keeps the layers `whole`, the others by threshold. False: a curve was widened,
// ask again; or the whole layers do not fit (fill->num_hot is empty).
bool BinSolver::FillAround(const std::vector<bool>& whole, Fill* fill) {
  fill->num_hot.clear();
  int64_t budget = bin_.budget_bytes;
  for (size_t l = 0; l < layers_.size(); ++l) {
    if (whole[l]) budget -= layers_[l].size() * layers_[l].input.bundle_bytes;
  }
  if (budget < 0) return true;
  fill->lambda = SmallestLambda(budget, [&](double lambda) {
    int64_t bytes = 0;
    for (size_t l = 0; l < layers_.size(); ++l) {
      if (!whole[l]) bytes += CountAt(layers_[l], lambda) * layers_[l].input.bundle_bytes;
    }
    return bytes;
  });
  std::vector<int64_t> num_hot(layers_.size());
  bool widened = false;
  for (size_t l = 0; l < layers_.size(); ++l) {
    const Layer& layer = layers_[l];
    num_hot[l] = whole[l] ? layer.size() : CountAt(layer, fill->lambda);
    if (whole[l]) continue;
    if (!layer.curve->Covers(num_hot[l])) widened |= Widen(l);
    budget -= num_hot[l] * layer.input.bundle_bytes;
  }
  if (widened) return false;
  // What the threshold leaves over: the best next ones that fit, equal ones of a layer together.
  struct Next {
    double worth;
    size_t layer;
    bool operator<(const Next& other) const {
      return worth != other.worth ? worth < other.worth : layer > other.layer;
    }
  };
  std::priority_queue<Next> next;
  const auto offer = [&](size_t l) {
    const Layer& layer = layers_[l];
    const int64_t k = num_hot[l];
    if (k >= layer.useful || layer.input.bundle_bytes > budget) return;
    next.push({layer.curve->Marginal(k + 1) * bin_.cold_per_byte /
                   static_cast<double>(layer.input.bundle_bytes),
               l});
  };
  for (size_t l = 0; l < layers_.size(); ++l) {
    if (!whole[l]) offer(l);
  }
  while (!next.empty()) {
    const size_t l = next.top().layer;
    next.pop();
    Layer& layer = layers_[l];
    const int64_t fits = budget / layer.input.bundle_bytes;
    if (fits == 0) continue;
    const int64_t equal =
        layer.curve->CountAtLeast(layer.curve->Marginal(num_hot[l] + 1)) - num_hot[l];
    const int64_t take = std::min({equal, fits, layer.useful - num_hot[l]});
    num_hot[l] += take;
    budget -= take * layer.input.bundle_bytes;
    if (!layer.curve->Covers(num_hot[l]) && Widen(l)) return false;
    offer(l);
  }
  fill->time = 0;
  for (size_t l = 0; l < layers_.size(); ++l) fill->time += Time(layers_[l], num_hot[l]);
  fill->num_hot = std::move(num_hot);
  return true;
}

BinSolver::Answer BinSolver::Solve() {
  Answer answer;
  while (true) {
    // With whole layers allowed, their number falls as bytes get dearer.
    const auto bytes_at = [&](double lambda) {
      int64_t bytes = 0;
      for (const Layer& layer : layers_) {
        bytes += (PrefersWhole(layer, lambda) ? layer.size() : CountAt(layer, lambda)) *
                 layer.input.bundle_bytes;
      }
      return bytes;
    };
    const double lambda = SmallestLambda(bin_.budget_bytes, bytes_at);
    bool widened = false;
    for (size_t l = 0; l < layers_.size(); ++l) {
      if (!layers_[l].curve->Covers(CountAt(layers_[l], lambda))) widened |= Widen(l);
    }
    if (widened) continue;
    answer.bound = BoundAt(lambda);
    // What is whole on either side of the jump, nothing, and everything.
    const double below =
        lambda > 0 ? std::bit_cast<double>(std::bit_cast<uint64_t>(lambda) - 1) : 0;
    std::vector<std::vector<bool>> proposals(1, std::vector<bool>(layers_.size(), false));
    for (const double at : {lambda, below}) {
      std::vector<bool> whole;
      for (const Layer& layer : layers_) whole.push_back(PrefersWhole(layer, at));
      proposals.push_back(std::move(whole));
    }
    proposals.push_back(std::vector<bool>(layers_.size(), true));
    std::sort(proposals.begin(), proposals.end());
    proposals.erase(std::unique(proposals.begin(), proposals.end()), proposals.end());
    best_ = Fill();
    bool again = false;
    for (const std::vector<bool>& whole : proposals) {
      Fill fill;
      if (!FillAround(whole, &fill)) {
        again = true;
        break;
      }
      if (fill.num_hot.empty()) continue;
      if (best_.num_hot.empty() || fill.time < best_.time) best_ = std::move(fill);
    }
    if (!again) break;
  }
  answer.num_hot = best_.num_hot;
  answer.time = best_.time;
  answer.bound = std::min(answer.bound, answer.time);
  return answer;
}

void BinSolver::Select(size_t layer, LayerPlacement& placement) const {
  const LayerCurve& curve = *layers_[layer].curve;
  const int64_t k = best_.num_hot[layer];
  if (k == curve.size()) {
    placement.num_hot = k;
    for (int64_t n = 0; n < k; ++n) {
      placement.hot[static_cast<size_t>(n / 64)] |= uint64_t{1} << (n % 64);
    }
    return;
  }
  curve.Select(k, placement);
}

std::vector<float> BinSolver::thresholds(size_t index) const {
  const Layer& layer = layers_[index];
  const LayerCurve& curve = *layer.curve;
  std::vector<float> out;
  if (by_node_) {
    const int64_t hot = best_.num_hot[index];
    const int64_t k = hot < curve.size() ? hot : CountAt(layer, best_.lambda);
    for (size_t m = 0; m < nodes_.size(); ++m) {
      const auto [begin, end] = NodeRange(nodes_, m, curve.size());
      out.push_back(curve.ReadsAt(k, begin, end));
    }
    return out;
  }
  double gain = best_.lambda * static_cast<double>(layer.input.bundle_bytes) / bin_.cold_per_byte;
  if (layer.useful > curve.first() && layer.useful <= curve.last()) {
    gain = std::max(gain, curve.Marginal(layer.useful));
  }
  out.push_back(static_cast<float>(gain));
  return out;
}

}  // namespace isotherm
