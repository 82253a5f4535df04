#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/unique_fd.h"
#include "common/shm/arena_layout.h"
#include "common/shm/shared_memory.h"
#include "cpu_worker/engine/bundle_source.h"

namespace isotherm::cpu {

// Every neuron of the model as bundles in sealed shared memory. Read-only once loaded, so any
// thread may use it. A digest is kept of each group of neurons, some 256 KiB of them.
class Arena {
 public:
  struct LoadOptions {
    int num_threads = 1;
    // From the loading threads, one at a time, with a share that never falls; 1 comes last. False
    // stops the load with Cancelled.
    std::function<bool(double share)> progress;
    shm::MemoryLimits limits;
  };
  // ResourceExhausted with exit code kShortage when the memory is not there (both numbers in the
  // text); the source's own errors; Cancelled.
  static absl::StatusOr<std::unique_ptr<Arena>> Load(const BundleSource& source,
                                                     const LoadOptions& options);

  const shm::ArenaGeometry& geometry() const { return geometry_; }
  const std::byte* layer(int64_t layer) const {
    return mapping_.data() + geometry_.LayerOffset(layer);
  }

  // A descriptor of the same memory, for a peer.
  absl::StatusOr<UniqueFd> DuplicateFd() const;

  // Groups are numbered through all layers.
  int64_t num_groups() const { return static_cast<int64_t>(digests_.size()); }
  int64_t group_bytes() const { return neurons_per_group_ * geometry_.bundle_bytes; }
  // DataLoss when the group's bytes are no longer those that were loaded.
  absl::Status CheckGroup(int64_t group) const;
  // Writes what differs from `source` anew, for all who map the memory; returns how many bytes did.
  // Readers meanwhile see each byte either as it was or as it should be. DataLoss when the source
  // is no longer what was loaded either; its own errors.
  absl::StatusOr<int64_t> MendGroup(int64_t group, const BundleSource& source);

 private:
  class Loader;
  struct Extent {
    int64_t layer = 0;
    int64_t first_neuron = 0;
    int64_t num_neurons = 0;
    int64_t offset = 0;  // in the memory
    int64_t bytes = 0;
  };
  Arena(const shm::ArenaGeometry& geometry, UniqueFd fd, shm::Mapping mapping);
  Extent ExtentOf(int64_t group) const;
  uint64_t DigestNow(int64_t group) const;

  const shm::ArenaGeometry geometry_;
  const UniqueFd fd_;
  shm::Mapping mapping_;
  const int64_t neurons_per_group_;
  const int64_t groups_per_layer_;
  std::vector<uint64_t> digests_;
};

// Order-sensitive 64-bit digest; finds damage, not malice. `bytes` is a multiple of 64.
uint64_t DigestOf(const std::byte* data, int64_t bytes);

}  // namespace isotherm::cpu
