#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/file_identity.h"
#include "common/base/unique_fd.h"
#include "common/shm/arena_layout.h"
#include "common/shm/shared_memory.h"
#include "cpu_worker/engine/bundle_source.h"

namespace isotherm::cpu {

// kCopy packs the bundles into sealed memory. kMap maps the bundle-ordered model file itself:
// nothing is copied, and the page cache holds the model once. kAuto maps a file that lies in memory
// (tmpfs): there a copy would take the model's size twice, while what lies on a disk can be pinned
// for a GPU only when copied.
enum class ArenaKind { kAuto, kCopy, kMap };

// Every neuron of the model as bundles in shared memory: sealed, or the model file's own. Read-only
// once loaded, so any thread may use it. Sealed memory is checked by groups of neurons, some 256
// KiB of them, of each of which a digest is kept; a model file by its size and time of change.
class Arena {
 public:
  struct LoadOptions {
    ArenaKind kind = ArenaKind::kAuto;
    int num_threads = 1;
    std::vector<int> cpus;  // thread i is bound to cpus[i % size]; empty: to none
    // From the loading threads, one at a time, with a share that never falls; 1 comes last. False
    // stops the load with Cancelled.
    std::function<bool(double share)> progress;
    shm::MemoryLimits limits;
  };
  // ResourceExhausted with exit code kShortage when the memory is not there (both numbers in the
  // text); InvalidArgument with kUsage for kMap of a source that has no file; DataLoss with
  // kBadData for a file that changed since it was opened; the source's own errors; Cancelled.
  static absl::StatusOr<std::unique_ptr<Arena>> Load(const BundleSource& source,
                                                     const LoadOptions& options);

  const shm::ArenaGeometry& geometry() const { return geometry_; }
  const std::byte* layer(int64_t layer) const {
    return mapping_.data() + geometry_.LayerOffset(layer);
  }

  // Of it in 2 MiB pages, when it was loaded.
  int64_t huge_page_bytes() const { return huge_page_bytes_; }

  // A descriptor of the same memory, for a peer.
  absl::StatusOr<UniqueFd> DuplicateFd() const;

  // Whether the memory is a model file, which a peer compares with its own.
  bool is_model_file() const { return file_.has_value(); }

  // Groups are numbered through all layers.
  int64_t num_groups() const { return groups_per_layer_ * geometry_.shape.num_layers; }
  int64_t group_bytes() const { return neurons_per_group_ * geometry_.bundle_bytes; }
  // DataLoss when the group's bytes are no longer those that were loaded.
  absl::Status CheckGroup(int64_t group) const;
  // Writes what differs from `source` anew, for all who map the memory; returns how many bytes did.
  // Readers meanwhile see each byte either as it was or as it should be. DataLoss when the source
  // is no longer what was loaded either, as always with a mapped file; its own errors.
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
  Arena(const shm::ArenaGeometry& geometry, UniqueFd fd, shm::Mapping mapping,
        int64_t neurons_per_group);
  static absl::StatusOr<std::unique_ptr<Arena>> MapModelFile(const BundleSource& source,
                                                             const LoadOptions& options);
  static absl::StatusOr<std::unique_ptr<Arena>> Copy(const BundleSource& source,
                                                     const LoadOptions& options);
  Extent ExtentOf(int64_t group) const;
  uint64_t DigestNow(int64_t group) const;

  const shm::ArenaGeometry geometry_;
  const UniqueFd fd_;
  shm::Mapping mapping_;
  const int64_t neurons_per_group_;  // of a model file: a layer
  const int64_t groups_per_layer_;
  std::vector<uint64_t> digests_;  // of sealed memory's groups
  struct ModelFileState {
    std::string path;
    FileIdentity identity;
  };
  std::optional<ModelFileState> file_;
  int64_t huge_page_bytes_ = 0;
};

// Order-sensitive 64-bit digest; finds damage, not malice. `bytes` is a multiple of 64.
uint64_t DigestOf(const std::byte* data, int64_t bytes);

}  // namespace isotherm::cpu
