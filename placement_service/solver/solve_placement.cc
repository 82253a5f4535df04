#include "placement_service/solver/solve_placement.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/status_macros.h"
#include "placement_service/solver/frequency_threshold.h"

namespace isotherm {
namespace {

// What a plan on the wire may have, too.
constexpr size_t kMaxLayers = 1024;
constexpr int64_t kMaxNeurons = int64_t{1} << 24;
constexpr int64_t kMaxBundleBytes = int64_t{1} << 28;  // all of it together fits 63 bits

bool IsHot(const LayerPlacement& layer, int64_t neuron) {
  return (layer.hot[static_cast<size_t>(neuron / 64)] >> (neuron % 64) & 1) != 0;
}

void MakeHot(LayerPlacement& layer, int64_t neuron) {
  layer.hot[static_cast<size_t>(neuron / 64)] |= uint64_t{1} << (neuron % 64);
  ++layer.num_hot;
}

absl::Status Check(const SolveInput& input) {
  if (input.layers.empty() || input.layers.size() > kMaxLayers || input.budget_bytes < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot place ", input.layers.size(), " layers in ", input.budget_bytes,
                     " bytes; 1 to ", kMaxLayers, " layers and a budget of 0 or more are wanted"));
  }
  if (!input.frequency.empty() && input.frequency.size() != input.layers.size()) {
    return absl::InvalidArgumentError(absl::StrCat("the profile has ", input.frequency.size(),
                                                   " layers, the model ", input.layers.size()));
  }
  for (size_t l = 0; l < input.layers.size(); ++l) {
    const LayerGeometry& layer = input.layers[l];
    if (layer.num_neurons < 1 || layer.num_neurons > kMaxNeurons || layer.bundle_bytes < 1 ||
        layer.bundle_bytes > kMaxBundleBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", l, " has ", layer.num_neurons, " neurons of ", layer.bundle_bytes,
                       " bytes; 1 to ", kMaxNeurons, " of 1 to ", kMaxBundleBytes, " are wanted"));
    }
    if (input.frequency.empty()) continue;
    const std::vector<float>& frequency = input.frequency[l];
    if (static_cast<int64_t>(frequency.size()) != layer.num_neurons) {
      return absl::InvalidArgumentError(absl::StrCat("layer ", l, " has ", layer.num_neurons,
                                                     " neurons, the profile ", frequency.size()));
    }
    for (const float value : frequency) {
      if (!(value >= 0 && value <= std::numeric_limits<float>::max())) {
        return absl::InvalidArgumentError(absl::StrCat("layer ", l,
                                                       " of the profile has the frequency ", value,
                                                       "; finite values from 0 are wanted"));
      }
    }
  }
  return absl::OkStatus();
}

// The same number of neurons in every layer, the rest to the first layers.
void SolveEven(const SolveInput& input, std::vector<LayerPlacement>& placement) {
  const auto bytes_with = [&](int64_t count) {
    int64_t bytes = 0;
    for (const LayerGeometry& layer : input.layers) {
      bytes += std::min(count, layer.num_neurons) * layer.bundle_bytes;
    }
    return bytes;
  };
  int64_t fits = 0;
  int64_t over = kMaxNeurons + 1;
  while (over - fits > 1) {
    const int64_t middle = fits + (over - fits) / 2;
    (bytes_with(middle) <= input.budget_bytes ? fits : over) = middle;
  }
  int64_t left = input.budget_bytes - bytes_with(fits);
  for (size_t l = 0; l < input.layers.size(); ++l) {
    const LayerGeometry& layer = input.layers[l];
    int64_t count = std::min(fits, layer.num_neurons);
    if (count < layer.num_neurons && layer.bundle_bytes <= left) {
      left -= layer.bundle_bytes;
      ++count;
    }
    for (int64_t n = 0; n < count; ++n) MakeHot(placement[l], n);
  }
}

// Makes hot what is above the threshold, then what is at it in order while it fits. Only neurons
// that are cold so far, of layers whose bundle fits `budget`. Returns the bytes taken.
template <typename Key, typename KeyOf>
int64_t TakeByThreshold(const SolveInput& input, int64_t budget, const KeyOf& key_of,
                        std::vector<LayerPlacement>& placement) {
  const FrequencyThreshold<Key> threshold = SelectThreshold<Key>(budget, [&](const auto& visit) {
    for (size_t l = 0; l < input.layers.size(); ++l) {
      const LayerGeometry& layer = input.layers[l];
      if (layer.bundle_bytes > budget) continue;
      const bool fresh = placement[l].num_hot == 0;
      for (int64_t n = 0; n < layer.num_neurons; ++n) {
        if (fresh || !IsHot(placement[l], n)) visit(key_of(l, n), layer.bundle_bytes);
      }
    }
  });
  int64_t left_at_threshold = budget - threshold.above_bytes;
  int64_t taken = 0;
  for (size_t l = 0; l < input.layers.size(); ++l) {
    const LayerGeometry& layer = input.layers[l];
    if (layer.bundle_bytes > budget) continue;
    for (int64_t n = 0; n < layer.num_neurons; ++n) {
      const Key key = key_of(l, n);
      const bool above = threshold.all_fit || key > threshold.key;
      if (!above && (key < threshold.key || layer.bundle_bytes > left_at_threshold)) continue;
      if (IsHot(placement[l], n)) continue;
      if (!above) left_at_threshold -= layer.bundle_bytes;
      MakeHot(placement[l], n);
      taken += layer.bundle_bytes;
    }
  }
  return taken;
}

void SolveByFrequency(const SolveInput& input, std::vector<LayerPlacement>& placement) {
  const bool one_size =
      std::all_of(input.layers.begin(), input.layers.end(), [&](const LayerGeometry& layer) {
        return layer.bundle_bytes == input.layers.front().bundle_bytes;
      });
  if (one_size) {
    TakeByThreshold<uint32_t>(
        input, input.budget_bytes,
        [&](size_t l, int64_t n) {
          return FrequencyKey(input.frequency[l][static_cast<size_t>(n)]);
        },
        placement);
    return;
  }
  // What one threshold leaves over is less than the bundle it stopped at; smaller ones may still
  // fit. Each round's largest candidate is smaller than the last one's, so the rounds are as many
  // as there are sizes.
  int64_t left = input.budget_bytes;
  int64_t taken = -1;
  while (taken != 0) {
    taken = TakeByThreshold<uint64_t>(
        input, left,
        [&](size_t l, int64_t n) {
          return DensityKey(input.frequency[l][static_cast<size_t>(n)],
                            input.layers[l].bundle_bytes);
        },
        placement);
    left -= taken;
  }
}

}  // namespace

absl::StatusOr<PlacementPlan> SolvePlacement(const SolveInput& input) {
  ISOTHERM_RETURN_IF_ERROR(Check(input));
  PlacementPlan plan;
  plan.budget_bytes = input.budget_bytes;
  for (const LayerGeometry& layer : input.layers) {
    plan.layers.push_back(
        {.hot = std::vector<uint64_t>(static_cast<size_t>(CeilDiv(layer.num_neurons, 64)), 0),
         .num_neurons = layer.num_neurons});
  }
  if (input.frequency.empty()) {
    plan.solver = "even";
    SolveEven(input, plan.layers);
  } else {
    plan.solver = "threshold";
    SolveByFrequency(input, plan.layers);
  }
  double hot_sum = 0;
  double sum = 0;
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    LayerPlacement& layer = plan.layers[l];
    double layer_hot = 0;
    double layer_sum = 0;
    if (input.frequency.empty()) {
      layer_hot = static_cast<double>(layer.num_hot);
      layer_sum = static_cast<double>(layer.num_neurons);
    } else {
      for (int64_t n = 0; n < layer.num_neurons; ++n) {
        const double frequency = input.frequency[l][static_cast<size_t>(n)];
        layer_sum += frequency;
        layer_hot += IsHot(layer, n) ? frequency : 0.0;
      }
    }
    // A layer that never fires misses nothing.
    layer.predicted_hit_share = layer_sum > 0 ? layer_hot / layer_sum : 1.0;
    hot_sum += layer_hot;
    sum += layer_sum;
    plan.used_bytes += layer.num_hot * input.layers[l].bundle_bytes;
  }
  plan.objective = sum > 0 ? hot_sum / sum : 1.0;
  return plan;
}

}  // namespace isotherm
