#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/base/file_identity.h"
#include "common/shm/arena_layout.h"
#include "common/tensor/activation.h"

namespace isotherm::cpu {

// How a neuron's value is made of its bundle and z; see SparseFfnParams.
struct NeuronRule {
  Activation activation = Activation::kRelu;
  bool activate_up = false;
  std::vector<std::vector<float>> up_bias;  // [num_layers][num_neurons], or empty: no biases
};

// A bundle-ordered model file that may serve as the arena itself.
struct BundleFileSource {
  std::string path;  // for messages
  int fd = -1;       // lives as long as the source's `pack`
  FileIdentity identity;
  std::vector<int64_t> layer_offsets;
};

// Where the arena's neurons come from: a model file, or a test's numbers.
struct BundleSource {
  shm::ArenaShape shape;
  NeuronRule rule;
  // Writes the bundles of neurons [first, first + count) of a layer to `out`, each of
  // ArenaGeometry::bundle_bytes. Called by several threads at once, on ranges that do not overlap.
  std::function<absl::Status(int64_t layer, int64_t first, int64_t count, std::byte* out)> pack;
  std::optional<BundleFileSource> file;  // absent: the neurons must be packed
};

}  // namespace isotherm::cpu
