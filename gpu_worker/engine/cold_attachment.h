#pragma once

#include <memory>

#include "gpu_worker/engine/cold_side.h"

namespace isotherm::gpu {

// One attachment to a cpu_worker: its link and, on the same host, its arena. The arena stays mapped
// and usable after the link's death.
class ColdAttachment {
 public:
  virtual ~ColdAttachment() = default;
  virtual ColdLink& link() = 0;
  virtual const NeuronStore* arena() const = 0;  // null: not mapped here
};

}  // namespace isotherm::gpu
