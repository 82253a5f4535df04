#include "placement_service/plan/plan_codec.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/checked_math.h"
#include "common/base/exit_code.h"

namespace isotherm {
namespace {

static_assert(std::endian::native == std::endian::little, "the stored form is little-endian");

constexpr uint32_t kVersion = 1;
constexpr uint32_t kMaxLayers = 1024;
constexpr int64_t kMaxNeurons = int64_t{1} << 24;

absl::Status Bad(absl::string_view what) {
  return WithExitCode(
      absl::DataLossError(absl::StrCat("a stored plan is damaged: ", what,
                                       "; restore the state directory from a backup, or start "
                                       "with an empty one")),
      ExitCode::kBadData);
}

template <typename T>
void Put(std::string& out, T value) {
  static_assert(std::is_trivially_copyable_v<T>);
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

template <typename T>
bool Take(absl::string_view& bytes, T& value) {
  if (bytes.size() < sizeof(value)) return false;
  std::memcpy(&value, bytes.data(), sizeof(value));
  bytes.remove_prefix(sizeof(value));
  return true;
}

}  // namespace

std::string EncodeLayers(const PlacementPlan& plan) {
  std::string out;
  Put(out, kVersion);
  Put(out, static_cast<uint32_t>(plan.layers.size()));
  for (const LayerPlacement& layer : plan.layers) {
    Put(out, layer.num_neurons);
    Put(out, layer.num_hot);
    Put(out, layer.predicted_hit_share);
    out.append(reinterpret_cast<const char*>(layer.hot.data()),
               layer.hot.size() * sizeof(uint64_t));
  }
  Put(out, PlanChecksum(plan));
  return out;
}

absl::StatusOr<std::vector<LayerPlacement>> DecodeLayers(absl::string_view bytes, bool bitmaps) {
  uint32_t version = 0;
  uint32_t num_layers = 0;
  if (!Take(bytes, version) || !Take(bytes, num_layers)) return Bad("it is cut short");
  if (version != kVersion) return Bad(absl::StrCat("its form is ", version, ", not ", kVersion));
  if (num_layers > kMaxLayers) return Bad(absl::StrCat("it has ", num_layers, " layers"));
  PlacementPlan plan;
  for (uint32_t l = 0; l < num_layers; ++l) {
    LayerPlacement layer;
    if (!Take(bytes, layer.num_neurons) || !Take(bytes, layer.num_hot) ||
        !Take(bytes, layer.predicted_hit_share)) {
      return Bad("it is cut short");
    }
    if (layer.num_neurons < 0 || layer.num_neurons > kMaxNeurons ||
        !(layer.predicted_hit_share >= 0 && layer.predicted_hit_share <= 1)) {
      return Bad(absl::StrCat("layer ", l, " has ", layer.num_neurons, " neurons and a share of ",
                              layer.predicted_hit_share));
    }
    const auto words = static_cast<size_t>(CeilDiv(layer.num_neurons, 64));
    if (bytes.size() / sizeof(uint64_t) < words) return Bad("it is cut short");
    layer.hot.resize(words);
    std::memcpy(layer.hot.data(), bytes.data(), words * sizeof(uint64_t));
    bytes.remove_prefix(words * sizeof(uint64_t));
    int64_t count = 0;
    for (const uint64_t word : layer.hot) count += std::popcount(word);
    const int64_t tail = layer.num_neurons % 64;
    if (count != layer.num_hot || (tail != 0 && layer.hot.back() >> tail != 0)) {
      return Bad(
          absl::StrCat("layer ", l, " has ", count, " bits for ", layer.num_hot, " hot neurons"));
    }
    plan.layers.push_back(std::move(layer));
  }
  uint64_t checksum = 0;
  if (!Take(bytes, checksum) || !bytes.empty()) return Bad("its length is wrong");
  if (checksum != PlanChecksum(plan)) return Bad("its checksum does not match");
  if (!bitmaps) {
    for (LayerPlacement& layer : plan.layers) layer.hot.clear();
  }
  return std::move(plan.layers);
}

std::string PlanEtag(const PlacementPlan& plan) {
  uint64_t hash = 0xcbf29ce484222325u;
  const auto mix = [&hash](absl::string_view bytes) {
    for (const char byte : bytes) {
      hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3u;
    }
  };
  mix(absl::StrCat(plan.model_digest, "\n", plan.budget_bytes, "\n", PlanChecksum(plan)));
  return absl::StrFormat("%016x", hash);
}

int64_t MovedNeurons(const PlacementPlan& before, const PlacementPlan& after) {
  int64_t moved = 0;
  for (size_t l = 0; l < after.layers.size(); ++l) {
    for (size_t w = 0; w < after.layers[l].hot.size(); ++w) {
      const bool known = l < before.layers.size() && w < before.layers[l].hot.size();
      moved += std::popcount(after.layers[l].hot[w] ^ (known ? before.layers[l].hot[w] : 0));
    }
  }
  return moved;
}

}  // namespace isotherm
