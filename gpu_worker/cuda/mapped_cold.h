#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "gpu_worker/cuda/device_memory.h"
#include "gpu_worker/cuda/kernels/step_data.h"
#include "gpu_worker/engine/cold_side.h"
#include "models/bundle_layout.h"

namespace isotherm::gpu {

// Host memory that is pinned and reachable by the device while this lives. Memory that is mapped
// read-only is writable for as long as pinning takes, where its file allows it: drivers differ in
// whether they pin what cannot be written.
class PinnedRange {
 public:
  static absl::StatusOr<std::unique_ptr<PinnedRange>> Make(std::span<const std::byte> memory,
                                                           bool read_only);
  ~PinnedRange();
  unsigned char* device_address(const void* host) const {
    return device_ + (static_cast<const std::byte*>(host) - host_.data());
  }
  std::span<const std::byte> host() const { return host_; }

 private:
  PinnedRange() = default;
  std::span<const std::byte> host_;
  unsigned char* device_ = nullptr;
};

// The neurons and the layer slots of one cold side as a device sees them.
class MappedCold {
 public:
  // FailedPrecondition, naming the remedy, when the memory cannot be pinned.
  static absl::StatusOr<std::shared_ptr<MappedCold>> Make(const ColdSide& cold,
                                                          const BundleLayout& layout);

  const NeuronStore* arena() const { return arena_; }
  shm::SlotClient* slots() const { return slots_; }
  // Device address of [num_layers] addresses of bundles; null: no arena here.
  const unsigned char* const* layers() const { return layers_.as<const unsigned char*>(); }
  // Null base: no slots.
  const SlotRing& ring() const { return ring_; }
  int32_t max_rows() const { return max_rows_; }  // of a post
  bool Holds(const std::byte* at) const;

 private:
  MappedCold() = default;
  const NeuronStore* arena_ = nullptr;
  shm::SlotClient* slots_ = nullptr;
  std::unique_ptr<PinnedRange> arena_range_, control_range_;
  DeviceBytes layers_;
  SlotRing ring_;
  int32_t max_rows_ = 0;
};

}  // namespace isotherm::gpu
