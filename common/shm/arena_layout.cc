#include "common/shm/arena_layout.h"

#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/checked_math.h"
#include "common/base/status_macros.h"

namespace isotherm::shm {

absl::StatusOr<ArenaGeometry> ArenaGeometry::Make(const ArenaShape& shape) {
  if (shape.rows != 2 && shape.rows != 3) {
    return absl::InvalidArgumentError(
        absl::StrCat("arena: bundles of ", shape.rows, " rows, want 2 or 3"));
  }
  if (shape.model_dim < 1 || shape.num_neurons < 1 || shape.num_layers < 1) {
    return absl::InvalidArgumentError(absl::StrCat("arena: model_dim ", shape.model_dim, ", ",
                                                   shape.num_neurons, " neurons, ",
                                                   shape.num_layers, " layers; want at least 1"));
  }
  ArenaGeometry geometry;
  geometry.shape = shape;
  ISOTHERM_ASSIGN_OR_RETURN(geometry.row_bytes, RowBytes(shape.dtype, shape.model_dim));
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t rows_bytes,
                            CheckedMul<int64_t>(geometry.row_bytes, shape.rows));
  ISOTHERM_ASSIGN_OR_RETURN(geometry.bundle_bytes, CheckedRoundUp<int64_t>(rows_bytes, 64));
  if (shape.bundle_bytes != 0) {
    if (shape.bundle_bytes < rows_bytes || shape.bundle_bytes % 64 != 0) {
      return absl::InvalidArgumentError(absl::StrCat("arena: bundles of ", shape.bundle_bytes,
                                                     " bytes for rows of ", rows_bytes,
                                                     "; want a multiple of 64 that holds them"));
    }
    geometry.bundle_bytes = shape.bundle_bytes;
  }
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t layer_bytes,
                            CheckedMul<int64_t>(geometry.bundle_bytes, shape.num_neurons));
  ISOTHERM_ASSIGN_OR_RETURN(geometry.layer_stride,
                            CheckedRoundUp<int64_t>(layer_bytes, kControlPage));
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t layers_bytes,
                            CheckedMul<int64_t>(geometry.layer_stride, shape.num_layers));
  ISOTHERM_ASSIGN_OR_RETURN(geometry.arena_bytes, CheckedAdd<int64_t>(layers_bytes, kControlPage));
  return geometry;
}

absl::StatusOr<ArenaGeometry> ArenaGeometry::MakeInFile(const ArenaShape& shape,
                                                        std::vector<int64_t> layer_offsets,
                                                        int64_t file_bytes) {
  ISOTHERM_ASSIGN_OR_RETURN(ArenaGeometry geometry, Make(shape));
  if (static_cast<int64_t>(layer_offsets.size()) != shape.num_layers) {
    return absl::InvalidArgumentError(absl::StrCat("arena: offsets of ", layer_offsets.size(),
                                                   " layers, want ", shape.num_layers));
  }
  for (size_t layer = 0; layer < layer_offsets.size(); ++layer) {
    const int64_t offset = layer_offsets[layer];
    if (offset < 0 || offset % 64 != 0 || geometry.layer_bytes() > file_bytes ||
        offset > file_bytes - geometry.layer_bytes()) {
      return absl::InvalidArgumentError(
          absl::StrCat("arena: layer ", layer, " of ", geometry.layer_bytes(), " bytes at ", offset,
                       "; want a multiple of 64 inside the file's ", file_bytes, " bytes"));
    }
  }
  geometry.layer_stride = 0;
  geometry.arena_bytes = file_bytes;
  geometry.file_offsets = std::move(layer_offsets);
  return geometry;
}

uint64_t LayoutHash(const ArenaShape& shape) {
  const absl::StatusOr<ArenaGeometry> geometry = ArenaGeometry::Make(shape);
  if (!geometry.ok()) return 0;
  uint64_t hash = 0xcbf29ce484222325u;
  for (const uint64_t word :
       {uint64_t{kArenaVersion}, static_cast<uint64_t>(shape.dtype),
        static_cast<uint64_t>(shape.rows), static_cast<uint64_t>(shape.model_dim),
        static_cast<uint64_t>(geometry->bundle_bytes), static_cast<uint64_t>(shape.num_neurons),
        static_cast<uint64_t>(shape.num_layers)}) {
    hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 29;
  }
  return hash;
}

void WriteArenaHeader(const ArenaGeometry& geometry, std::byte* arena) {
  const ArenaHeader header{.magic = kArenaMagic,
                           .version = kArenaVersion,
                           .header_bytes = sizeof(ArenaHeader),
                           .arena_bytes = static_cast<uint64_t>(geometry.arena_bytes),
                           .layout_hash = LayoutHash(geometry.shape),
                           .complete = 1};
  std::memcpy(arena, &header, sizeof(header));
}

absl::Status CheckArenaHeader(const ArenaGeometry& geometry, const std::byte* arena) {
  const ArenaHeader header = Snapshot(*reinterpret_cast<const ArenaHeader*>(arena));
  absl::string_view field;
  if (header.magic != kArenaMagic) field = "magic";
  if (header.version != kArenaVersion) field = "version";
  if (header.header_bytes != sizeof(ArenaHeader)) field = "header size";
  if (header.arena_bytes != static_cast<uint64_t>(geometry.arena_bytes)) field = "size";
  if (header.layout_hash != LayoutHash(geometry.shape)) field = "layout hash";
  if (header.complete != 1) field = "completeness";
  if (field.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "arena: its ", field, " is not this model's; both workers must load one model file"));
}

}  // namespace isotherm::shm
