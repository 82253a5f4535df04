#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu_worker/cuda/device_memory.h"
#include "gpu_worker/cuda/kernels/step_data.h"
#include "gpu_worker/engine/hot_pool.h"

namespace isotherm::gpu {

// Device copies of the epochs' tables, in memory taken once: making one allocates nothing. An epoch
// keeps its place until its host tables are gone. Thread-safe.
class CudaTables {
 public:
  // Room for `places` epochs of at most `max_hot` hot neurons.
  static absl::StatusOr<std::unique_ptr<CudaTables>> Create(const BundleLayout& layout,
                                                            int64_t max_hot, int places);

  // Uploads the tables on `stream` and waits for it. ResourceExhausted when all places are taken.
  absl::Status Add(const std::shared_ptr<const EpochTables>& tables, cudaStream_t stream);
  // Device address of the epoch's [num_layers] tables; null if it was not added.
  const LayerTable* Find(const EpochTables* tables) const;

  int64_t bytes() const { return place_bytes_ * static_cast<int64_t>(places_.size()); }

 private:
  struct Place {
    std::weak_ptr<const EpochTables> owner;
    const EpochTables* key = nullptr;
    DeviceBytes memory;
  };
  CudaTables(const BundleLayout& layout, int64_t max_hot);

  const BundleLayout layout_;
  const int64_t max_hot_;
  int64_t place_bytes_ = 0;
  PinnedBytes staging_;
  mutable std::mutex mu_;
  std::vector<Place> places_;
};

}  // namespace isotherm::gpu
