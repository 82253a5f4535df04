#include "gpu_worker/cuda/cuda_tables.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace isotherm::gpu {
namespace {

int64_t Words(const BundleLayout& layout) { return (layout.num_neurons + 63) / 64; }

}  // namespace

CudaTables::CudaTables(const BundleLayout& layout, int64_t max_hot)
    : layout_(layout), max_hot_(max_hot) {
  place_bytes_ =
      layout.num_layers * (static_cast<int64_t>(sizeof(LayerTable)) + 16 * Words(layout)) +
      8 * (max_hot + 1);
}

absl::StatusOr<std::unique_ptr<CudaTables>> CudaTables::Create(const BundleLayout& layout,
                                                               int64_t max_hot, int places) {
  std::unique_ptr<CudaTables> tables(new CudaTables(layout, max_hot));
  ISOTHERM_ASSIGN_OR_RETURN(tables->staging_, PinnedBytes::Make(tables->place_bytes_));
  tables->places_.resize(static_cast<size_t>(places));
  for (Place& place : tables->places_) {
    ISOTHERM_ASSIGN_OR_RETURN(place.memory,
                              DeviceBytes::Make(tables->place_bytes_, "the tables of hot neurons"));
  }
  return tables;
}

absl::Status CudaTables::Add(const std::shared_ptr<const EpochTables>& tables,
                             cudaStream_t stream) {
  std::lock_guard lock(mu_);
  Place* place = nullptr;
  for (Place& candidate : places_) {
    if (candidate.key == tables.get() && !candidate.owner.expired()) return absl::OkStatus();
    if (candidate.owner.expired()) place = &candidate;
  }
  if (place == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat(
        places_.size(), " epochs are in use on the device; try again when one is retired"));
  }
  const int64_t words = Words(layout_);
  const auto layers = static_cast<int64_t>(tables->layers.size());
  const auto* const device = place->memory.as<>();
  std::byte* const host = staging_.as<>();
  const int64_t bits_at = layers * static_cast<int64_t>(sizeof(LayerTable));
  const int64_t ids_at = bits_at + layers * 16 * words;
  const int64_t slots_at = ids_at + 4 * (max_hot_ + 1);
  int64_t hot = 0;
  for (int64_t l = 0; l < layers; ++l) {
    const EpochTables::Layer& layer = tables->layers[static_cast<size_t>(l)];
    const int64_t at = bits_at + l * 16 * words;
    std::memcpy(host + at, layer.hot.data(), static_cast<size_t>(8 * words));
    std::memcpy(host + at + 8 * words, layer.cold.data(), static_cast<size_t>(8 * words));
    LayerTable table{.hot = reinterpret_cast<const uint64_t*>(device + at),
                     .cold = reinterpret_cast<const uint64_t*>(device + at + 8 * words),
                     .hot_ids = reinterpret_cast<const int32_t*>(device + ids_at) + hot,
                     .hot_slots = reinterpret_cast<const int32_t*>(device + slots_at) + hot,
                     .num_hot = static_cast<int32_t>(layer.num_hot)};
    std::memcpy(host + l * static_cast<int64_t>(sizeof(LayerTable)), &table, sizeof(table));
    if (hot + layer.num_hot > max_hot_) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the plan has more than ", max_hot_, " hot neurons"));
    }
    for (int64_t n = 0; n < layout_.num_neurons; ++n) {
      const int32_t slot = layer.slot_of[static_cast<size_t>(n)];
      if (slot < 0) continue;
      const auto id = static_cast<int32_t>(n);
      std::memcpy(host + ids_at + 4 * hot, &id, 4);
      std::memcpy(host + slots_at + 4 * hot, &slot, 4);
      ++hot;
    }
  }
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(place->memory.as<void>(), host,
                                                static_cast<size_t>(place_bytes_),
                                                cudaMemcpyHostToDevice, stream));
  ISOTHERM_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(stream));
  place->owner = tables;
  place->key = tables.get();
  return absl::OkStatus();
}

const LayerTable* CudaTables::Find(const EpochTables* tables) const {
  std::lock_guard lock(mu_);
  for (const Place& place : places_) {
    if (place.key == tables && !place.owner.expired())
      return reinterpret_cast<const LayerTable*>(place.memory.as<>());
  }
  return nullptr;
}

}  // namespace isotherm::gpu
