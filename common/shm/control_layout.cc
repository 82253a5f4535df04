#include "common/shm/control_layout.h"

#include <sys/random.h>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/checked_math.h"

namespace isotherm::shm {
namespace {

absl::Status CheckBound(absl::string_view name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("control region: ", name, " is ", value, ", want ", low, " to ", high));
}

}  // namespace

Nonce RandomNonce() {
  Nonce nonce;
  ISOTHERM_CHECK(::getrandom(&nonce, sizeof(nonce), 0) == static_cast<ssize_t>(sizeof(nonce)));
  return nonce;
}

absl::StatusOr<ControlGeometry> ControlGeometry::Make(const ControlShape& shape) {
  for (const absl::Status& status : {CheckBound("max_rows", shape.max_rows, 1, 4096),
                                     CheckBound("model_dim", shape.model_dim, 1, 1 << 20),
                                     CheckBound("num_neurons", shape.num_neurons, 1, 1 << 24),
                                     CheckBound("num_layers", shape.num_layers, 1, 65'536),
                                     CheckBound("num_slots", shape.num_slots, 2, 64)}) {
    if (!status.ok()) return status;
  }
  if ((shape.num_slots & (shape.num_slots - 1)) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("control region: num_slots is ", shape.num_slots, ", want a power of two"));
  }
  // No product below passes 2^12 * 2^20 * 4 * 2^6 = 2^40.
  ControlGeometry geometry;
  const int64_t rows = shape.max_rows;
  geometry.shape = shape;
  geometry.words_per_row = CeilDiv<int64_t>(shape.num_neurons, 64);
  geometry.z_offset = sizeof(SlotRequest);
  geometry.active_offset =
      RoundUp<int64_t>(geometry.z_offset + rows * shape.model_dim * int64_t{sizeof(uint16_t)}, 64);
  geometry.row_keys_offset = RoundUp<int64_t>(
      geometry.active_offset + rows * geometry.words_per_row * int64_t{sizeof(uint64_t)}, 64);
  geometry.result_offset =
      RoundUp<int64_t>(geometry.row_keys_offset + rows * int64_t{sizeof(int32_t)}, 64);
  geometry.partial_offset = geometry.result_offset + int64_t{sizeof(SlotResult)};
  geometry.slot_stride = RoundUp<int64_t>(
      geometry.partial_offset + rows * shape.model_dim * int64_t{sizeof(float)}, kControlPage);
  geometry.region_bytes = geometry.slots_offset + shape.num_slots * geometry.slot_stride;
  return geometry;
}

}  // namespace isotherm::shm
