#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "common/base/checked_math.h"
#include "common/step/placement_plan.h"
#include "common/tensor/half.h"
#include "cpu_worker/engine/bundle_source.h"
#include "cpu_worker/engine/cold_engine.h"
#include "tests/reference/sparse_ffn.h"

namespace isotherm::cpu {

inline constexpr char kToyDigest[] = "toy-digest";

// Small integer weights in F16, so that sums are exact in any order.
inline BundleSource ToySource(int rows = 3) {
  BundleSource source;
  source.shape = {
      .dtype = DType::kF16, .rows = rows, .model_dim = 32, .num_neurons = 100, .num_layers = 3};
  source.pack = [shape = source.shape](int64_t layer, int64_t first, int64_t count,
                                       std::byte* out) {
    const auto geometry = shm::ArenaGeometry::Make(shape).value();
    for (int64_t n = 0; n < count; ++n) {
      std::mt19937 random(static_cast<uint32_t>(layer * 1000 + first + n));
      std::byte* const bundle = out + n * geometry.bundle_bytes;
      std::memset(bundle, 0, static_cast<size_t>(geometry.bundle_bytes));
      for (int64_t i = 0; i < shape.rows * shape.model_dim; ++i) {
        const uint16_t value = F32ToF16(static_cast<float>(static_cast<int>(random() % 5) - 2));
        std::memcpy(bundle + 2 * i, &value, 2);
      }
    }
    return absl::OkStatus();
  };
  return source;
}

// Every neuron with id % modulus == remainder is hot, in every layer.
inline PlacementPlan ToyPlan(int64_t epoch, int64_t modulus, int64_t remainder) {
  const shm::ArenaShape shape = ToySource().shape;
  PlacementPlan plan;
  plan.epoch = epoch;
  plan.model_digest = kToyDigest;
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    LayerPlacement placement;
    placement.num_neurons = shape.num_neurons;
    placement.hot.assign(2, 0);
    for (int64_t id = remainder; id < shape.num_neurons; id += modulus) {
      placement.hot[static_cast<size_t>(id / 64)] |= uint64_t{1} << (id % 64);
      ++placement.num_hot;
    }
    plan.layers.push_back(placement);
  }
  return plan;
}

// Inputs of one layer's post.
struct ToyPost {
  std::vector<uint16_t> z;
  std::vector<uint64_t> active;
  std::vector<int32_t> row_keys;

  explicit ToyPost(int64_t rows, uint32_t seed) {
    std::mt19937 random(seed);
    const shm::ArenaShape shape = ToySource().shape;
    for (int64_t i = 0; i < rows * shape.model_dim; ++i) {
      z.push_back(F32ToF16(static_cast<float>(static_cast<int>(random() % 7) - 3)));
    }
    for (int64_t row = 0; row < rows; ++row) {
      active.push_back(uint64_t{random()} << 32 | random());
      active.push_back((uint64_t{random()} << 32 | random()) & ((uint64_t{1} << 36) - 1));
      row_keys.push_back(static_cast<int32_t>(row * 3 + 1));
    }
  }
};

// What the cold side owes, by the plain formula. `cold`: null for all neurons.
inline reference::SparseFfnResult ToyReference(const std::byte* layer,
                                               const shm::ColdLayerHeader& header, uint64_t nonce,
                                               const ToyPost& post, const uint64_t* cold,
                                               const BundleSource& source = ToySource()) {
  const auto geometry = shm::ArenaGeometry::Make(source.shape).value();
  std::vector<uint64_t> keys;
  for (const int32_t key : post.row_keys) {
    keys.push_back(StepKey(nonce, static_cast<uint64_t>(header.step_id),
                           static_cast<uint64_t>(header.attempt), static_cast<uint64_t>(key)));
  }
  const NeuronHash hash{
      LayerSeed(static_cast<uint64_t>(header.epoch), static_cast<uint64_t>(header.layer)),
      keys.data()};
  SparseFfnParams params;
  params.bundles = {.dtype = geometry.shape.dtype,
                    .rows = geometry.shape.rows,
                    .model_dim = geometry.shape.model_dim,
                    .row_bytes = geometry.row_bytes,
                    .bundle_bytes = geometry.bundle_bytes,
                    .data = layer,
                    .num_neurons = geometry.shape.num_neurons};
  params.z_f16 = post.z.data();
  params.num_rows = header.num_rows;
  params.active = post.active.data();
  params.owned = cold;
  params.last_neuron = header.cut;
  params.activation = source.rule.activation;
  params.activate_up = source.rule.activate_up;
  if (!source.rule.up_bias.empty()) {
    params.up_bias = source.rule.up_bias[static_cast<size_t>(header.layer)].data();
  }
  params.hash = &hash;
  return reference::SparseFfn(params);
}

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = testing::TempDir() + "isotherm-XXXXXX";
    path_ = ::mkdtemp(name.data());
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline size_t OpenDescriptors() {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    ++count;
  }
  return count;
}

}  // namespace isotherm::cpu
