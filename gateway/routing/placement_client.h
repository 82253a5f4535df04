#pragma once

#include <cstdint>

namespace isotherm {

// What the placement_service tells about epochs. When it is away the last word holds.
class PlacementEvents {
 public:
  virtual ~PlacementEvents() = default;
  // Both workers have committed the epoch: steps may name it.
  virtual void OnLive(int64_t epoch) = 0;
  // Steps must not name the epoch any more.
  virtual void OnRetired(int64_t epoch) = 0;
};

}  // namespace isotherm
