#include "placement_service/solver/solve_placement.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/status_macros.h"
#include "placement_service/solver/bin_solver.h"
#include "placement_service/solver/scan_values.h"

namespace isotherm {
namespace {

// What a plan on the wire may have, too.
constexpr size_t kMaxLayers = 1024;
constexpr int64_t kMaxNeurons = int64_t{1} << 24;
constexpr int64_t kMaxBundleBytes = int64_t{1} << 28;  // all of it together fits 63 bits
constexpr size_t kMaxNodes = 64;

bool IsHot(const LayerPlacement& layer, int64_t neuron) {
  return (layer.hot[static_cast<size_t>(neuron / 64)] >> (neuron % 64) & 1) != 0;
}

absl::Status CheckShape(absl::string_view what, std::span<const std::vector<float>> values,
                        const SolveInput& input) {
  if (values.empty()) return absl::OkStatus();
  if (values.size() != input.layers.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " has ", values.size(), " layers, the model ", input.layers.size()));
  }
  for (size_t l = 0; l < values.size(); ++l) {
    if (static_cast<int64_t>(values[l].size()) == input.layers[l].num_neurons) continue;
    return absl::InvalidArgumentError(absl::StrCat("layer ", l, " has ",
                                                   input.layers[l].num_neurons, " neurons, ", what,
                                                   " ", values[l].size()));
  }
  return absl::OkStatus();
}

absl::Status BadValue(absl::string_view what, size_t layer, absl::string_view wanted) {
  return absl::InvalidArgumentError(absl::StrCat(
      "layer ", layer, " of ", what, " has a value that is not one; ", wanted, " are wanted"));
}

absl::Status CheckBin(const SolveBin& bin, size_t index) {
  const auto cost = [](double value) { return value >= 0 && std::isfinite(value); };
  if (bin.budget_bytes >= 0 && cost(bin.cold_fixed) && cost(bin.cold_per_byte) &&
      bin.cold_per_byte > 0 && cost(bin.hot_fixed) && cost(bin.hot_per_byte)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "bin ", index, " has ", bin.budget_bytes, " bytes and the costs ", bin.cold_fixed, ", ",
      bin.cold_per_byte, ", ", bin.hot_fixed, ", ", bin.hot_per_byte,
      "; a budget of 0 or more, a cold cost a byte above 0 and other costs from 0 are wanted"));
}

absl::Status CheckNodes(std::span<const SolveNode> nodes) {
  double end = 0;
  for (const SolveNode& node : nodes) {
    const bool good = node.share_end > end && node.cost_factor > 0 &&
                      std::isfinite(node.cost_factor) && nodes.size() <= kMaxNodes;
    if (!good) {
      return absl::InvalidArgumentError(absl::StrCat(
          "a node ends at ", node.share_end, " with cost factor ", node.cost_factor, "; at most ",
          kMaxNodes, " ascending shares and factors above 0 are wanted"));
    }
    end = node.share_end;
  }
  if (!nodes.empty() && end != 1) {
    return absl::InvalidArgumentError(absl::StrCat("the nodes' shares end at ", end, ", not at 1"));
  }
  return absl::OkStatus();
}

absl::Status Check(const SolveInput& input) {
  if (input.layers.empty() || input.layers.size() > kMaxLayers) {
    return absl::InvalidArgumentError(absl::StrCat("cannot place ", input.layers.size(),
                                                   " layers; 1 to ", kMaxLayers, " are wanted"));
  }
  for (size_t l = 0; l < input.layers.size(); ++l) {
    const LayerGeometry& layer = input.layers[l];
    if (layer.num_neurons < 1 || layer.num_neurons > kMaxNeurons || layer.bundle_bytes < 1 ||
        layer.bundle_bytes > kMaxBundleBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", l, " has ", layer.num_neurons, " neurons of ", layer.bundle_bytes,
                       " bytes; 1 to ", kMaxNeurons, " of 1 to ", kMaxBundleBytes, " are wanted"));
    }
    if (layer.bin < 0 || static_cast<size_t>(layer.bin) >= input.bins.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", l, " is in bin ", layer.bin, ", there are ", input.bins.size()));
    }
  }
  for (size_t b = 0; b < input.bins.size(); ++b) {
    ISOTHERM_RETURN_IF_ERROR(CheckBin(input.bins[b], b));
  }
  ISOTHERM_RETURN_IF_ERROR(CheckNodes(input.nodes));
  ISOTHERM_RETURN_IF_ERROR(CheckShape("the profile", input.frequency, input));
  return CheckShape("the reads", input.reads, input);
}

std::vector<size_t> LayersOf(const SolveInput& input, size_t bin) {
  std::vector<size_t> layers;
  for (size_t l = 0; l < input.layers.size(); ++l) {
    if (static_cast<size_t>(input.layers[l].bin) == bin) layers.push_back(l);
  }
  return layers;
}

// The same number of neurons in every layer of the bin, the rest to the first layers.
void SolveEven(const SolveInput& input, int64_t budget, const std::vector<size_t>& layers,
               std::vector<LayerPlacement>& placement) {
  const auto bytes_with = [&](int64_t count) {
    int64_t bytes = 0;
    for (const size_t l : layers) {
      bytes += std::min(count, input.layers[l].num_neurons) * input.layers[l].bundle_bytes;
    }
    return bytes;
  };
  int64_t fits = 0;
  int64_t over = kMaxNeurons + 1;
  while (over - fits > 1) {
    const int64_t middle = fits + (over - fits) / 2;
    (bytes_with(middle) <= budget ? fits : over) = middle;
  }
  int64_t left = budget - bytes_with(fits);
  for (const size_t l : layers) {
    const LayerGeometry& layer = input.layers[l];
    int64_t count = std::min(fits, layer.num_neurons);
    if (count < layer.num_neurons && layer.bundle_bytes <= left) {
      left -= layer.bundle_bytes;
      ++count;
    }
    for (int64_t n = 0; n < count; ++n) {
      placement[l].hot[static_cast<size_t>(n / 64)] |= uint64_t{1} << (n % 64);
    }
    placement[l].num_hot = count;
  }
}

// frequency * bundle_bytes, where the caller has no better idea.
std::vector<std::vector<float>> DefaultReads(const SolveInput& input) {
  std::vector<std::vector<float>> reads(input.layers.size());
  for (size_t l = 0; l < reads.size(); ++l) {
    const auto bytes = static_cast<float>(input.layers[l].bundle_bytes);
    reads[l].reserve(input.frequency[l].size());
    for (const float value : input.frequency[l]) reads[l].push_back(value * bytes);
  }
  return reads;
}

absl::Status SolveByReads(const SolveInput& input, std::span<const std::vector<float>> reads,
                          SolveHints* hints, PlacementPlan& plan) {
  const size_t nodes = std::max<size_t>(1, input.nodes.size());
  const bool hinted = hints != nullptr && hints->threshold.size() == input.layers.size() * nodes;
  std::vector<float> thresholds(input.layers.size() * nodes);
  for (size_t b = 0; b < input.bins.size(); ++b) {
    const std::vector<size_t> layers = LayersOf(input, b);
    if (layers.empty()) continue;
    std::vector<BinSolver::LayerInput> inputs;
    std::vector<float> expected;
    for (const size_t l : layers) {
      inputs.push_back({.reads = reads[l], .bundle_bytes = input.layers[l].bundle_bytes});
      for (size_t m = 0; hinted && m < nodes; ++m) {
        expected.push_back(hints->threshold[l * nodes + m]);
      }
    }
    BinSolver solver(input.bins[b], input.nodes, std::move(inputs), std::move(expected));
    for (size_t i = 0; i < layers.size(); ++i) {
      if (!solver.finite(i)) return BadValue("the reads", layers[i], "finite values");
    }
    const BinSolver::Answer answer = solver.Solve();
    plan.predicted_ns += answer.time;
    plan.bound_ns += answer.bound;
    for (size_t i = 0; i < layers.size(); ++i) {
      solver.Select(i, plan.layers[layers[i]]);
      std::ranges::copy(solver.thresholds(i),
                        thresholds.begin() + static_cast<std::ptrdiff_t>(layers[i] * nodes));
    }
  }
  if (hints != nullptr) hints->threshold = std::move(thresholds);
  return absl::OkStatus();
}

// As PredictHitShare, and checks the values on the way.
absl::StatusOr<double> HitShare(std::span<const std::vector<float>> frequency,
                                std::vector<LayerPlacement>& layers) {
  double hot_sum = 0, sum = 0;
  for (size_t l = 0; l < layers.size(); ++l) {
    const HotSum layer = SumHot(frequency[l], layers[l].hot.data());
    if (!std::isfinite(layer.sum) || layer.least < 0) {
      return BadValue("the profile", l, "finite values from 0");
    }
    // A layer that never fires misses nothing.
    layers[l].predicted_hit_share = layer.sum > 0 ? layer.hot / layer.sum : 1.0;
    hot_sum += layer.hot;
    sum += layer.sum;
  }
  return sum > 0 ? hot_sum / sum : 1.0;
}

}  // namespace

double PredictHitShare(std::span<const std::vector<float>> frequency,
                       std::vector<LayerPlacement>& layers) {
  return HitShare(frequency, layers).value_or(0);
}

double PredictStepNs(const SolveInput& input, std::span<const LayerPlacement> layers) {
  double time = 0;
  const SolveNode one_node;
  const std::span<const SolveNode> nodes =
      input.nodes.empty() ? std::span(&one_node, 1) : std::span<const SolveNode>(input.nodes);
  for (size_t l = 0; l < layers.size(); ++l) {
    const SolveBin& bin = input.bins[static_cast<size_t>(input.layers[l].bin)];
    const std::vector<float>& values = input.reads.empty() ? input.frequency[l] : input.reads[l];
    const double unit =
        input.reads.empty() ? static_cast<double>(input.layers[l].bundle_bytes) : 1.0;
    double hot = 0, slowest = 0;
    if (nodes.size() == 1) {
      const HotSum bytes = SumHot(values, layers[l].hot.data());
      hot = bytes.hot * unit;
      slowest = (bytes.sum - bytes.hot) * unit * nodes[0].cost_factor;
    }
    for (size_t m = 0; nodes.size() > 1 && m < nodes.size(); ++m) {
      const auto [begin, end] = NodeRange(nodes, m, input.layers[l].num_neurons);
      double cold = 0;
      for (int64_t n = begin; n < end; ++n) {
        const double value = values[static_cast<size_t>(n)] * unit;
        (IsHot(layers[l], n) ? hot : cold) += value;
      }
      slowest = std::max(slowest, cold * nodes[m].cost_factor);
    }
    const double hot_time = bin.hot_fixed + bin.hot_per_byte * hot;
    const bool whole = layers[l].num_hot == layers[l].num_neurons;
    time += whole ? hot_time : std::max(hot_time, bin.cold_fixed + bin.cold_per_byte * slowest);
  }
  return time;
}

absl::StatusOr<PlacementPlan> SolvePlacement(const SolveInput& input, SolveHints* hints) {
  ISOTHERM_RETURN_IF_ERROR(Check(input));
  PlacementPlan plan;
  for (const SolveBin& bin : input.bins) plan.budget_bytes += bin.budget_bytes;
  for (const LayerGeometry& layer : input.layers) {
    plan.layers.push_back(
        {.hot = std::vector<uint64_t>(static_cast<size_t>(CeilDiv(layer.num_neurons, 64)), 0),
         .num_neurons = layer.num_neurons});
  }
  if (input.frequency.empty()) {
    plan.solver = "even";
    int64_t hot = 0, all = 0;
    for (size_t b = 0; b < input.bins.size(); ++b) {
      SolveEven(input, input.bins[b].budget_bytes, LayersOf(input, b), plan.layers);
    }
    for (LayerPlacement& layer : plan.layers) {
      layer.predicted_hit_share =
          static_cast<double>(layer.num_hot) / static_cast<double>(layer.num_neurons);
      hot += layer.num_hot;
      all += layer.num_neurons;
    }
    plan.objective = static_cast<double>(hot) / static_cast<double>(all);
  } else {
    plan.solver = "threshold";
    if (input.reads.empty()) {
      ISOTHERM_RETURN_IF_ERROR(SolveByReads(input, DefaultReads(input), hints, plan));
    } else {
      ISOTHERM_RETURN_IF_ERROR(SolveByReads(input, input.reads, hints, plan));
    }
    ISOTHERM_ASSIGN_OR_RETURN(plan.objective, HitShare(input.frequency, plan.layers));
  }
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    plan.used_bytes += plan.layers[l].num_hot * input.layers[l].bundle_bytes;
  }
  return plan;
}

}  // namespace isotherm
