#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/shm/control_layout.h"
#include "common/tensor/dtype.h"

// Bytes of the arena, layout version 1: for each layer its neurons' bundles,
// [gate row | up row | down row] or [up row | down row], neuron after neuron. In sealed memory a
// header page comes first and layers start on pages; in a bundle-ordered model file layers lie
// where the file's tensors are.
namespace isotherm::shm {

inline constexpr uint64_t kArenaMagic = 0x31414e4552415349u;  // "ISARENA1"
inline constexpr uint32_t kArenaVersion = 1;

struct ArenaShape {
  DType dtype = DType::kF16;
  int32_t rows = 3;  // of a bundle: 3 with a gate, 2 without
  int64_t model_dim = 0;
  int64_t num_neurons = 0;  // of a layer
  int64_t num_layers = 0;
  int64_t bundle_bytes = 0;  // a multiple of 64; 0: the rows', rounded up to one
  bool operator==(const ArenaShape&) const = default;
};

struct ArenaGeometry {
  // InvalidArgument for sizes below 1, bundles of other than 2 or 3 rows, or a row that is no whole
  // number of the type's blocks; OutOfRange when the total does not fit 63 bits.
  static absl::StatusOr<ArenaGeometry> Make(const ArenaShape& shape);
  // In a model file of `file_bytes`. InvalidArgument also for an offset that is no multiple of 64,
  // and a layer that is not inside the file.
  static absl::StatusOr<ArenaGeometry> MakeInFile(const ArenaShape& shape,
                                                  std::vector<int64_t> layer_offsets,
                                                  int64_t file_bytes);

  ArenaShape shape;
  int64_t row_bytes = 0;
  int64_t bundle_bytes = 0;           // a multiple of 64
  int64_t layer_stride = 0;           // in sealed memory: a multiple of a page
  int64_t arena_bytes = 0;            // of the memory or the file
  std::vector<int64_t> file_offsets;  // of each layer in a model file; empty in sealed memory

  int64_t LayerOffset(int64_t layer) const {
    return file_offsets.empty() ? kControlPage + layer * layer_stride
                                : file_offsets[static_cast<size_t>(layer)];
  }
  int64_t layer_bytes() const { return shape.num_neurons * bundle_bytes; }
};

// Equal when two processes cut bundles alike: hash of the shape, the bundle's bytes and the layout
// version, the same as BundleLayout::Hash() of the model file. Where layers lie is no part of it.
// 0 for a shape that is none.
uint64_t LayoutHash(const ArenaShape& shape);

// The arena's first page.
struct ArenaHeader {
  uint64_t magic;
  uint32_t version;
  uint32_t header_bytes;
  uint64_t arena_bytes;
  uint64_t layout_hash;
  uint64_t complete;  // 1 once every bundle is in place
};
static_assert(sizeof(ArenaHeader) == 40);

void WriteArenaHeader(const ArenaGeometry& geometry, std::byte* arena);
// FailedPrecondition unless `arena`, of geometry.arena_bytes, starts with that geometry's header.
absl::Status CheckArenaHeader(const ArenaGeometry& geometry, const std::byte* arena);

}  // namespace isotherm::shm
