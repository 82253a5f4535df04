#pragma once

#include <cstdint>

#include "absl/status/status.h"

namespace isotherm::gpu {

// Memory behind the front of a range of addresses that stays as it is. Not thread-safe; resized
// only while no step reads it.
class PoolMemory {
 public:
  virtual ~PoolMemory() = default;

  // Makes the front at least `bytes` long, and no longer than the steps in which memory is taken
  // and given back make it: SizeAfter(bytes). What stays keeps its contents; what is new has any.
  // ResourceExhausted, naming the bytes needed and free, when the device is short, with what could
  // be had kept.
  virtual absl::Status Resize(int64_t bytes) = 0;
  // bytes() after a Resize(bytes) that succeeds now.
  virtual int64_t SizeAfter(int64_t bytes) const = 0;
  virtual int64_t bytes() const = 0;
};

}  // namespace isotherm::gpu
