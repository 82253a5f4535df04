#pragma once

#include <cstdint>
#include <string>

#include "common/shm/control_layout.h"

namespace isotherm::shm {

// What a gpu_worker needs to take the descriptors of one attachment: the answer of OpenArena.
struct ArenaOffer {
  Nonce nonce;
  std::string handoff_token;
  std::string socket_path;
  int64_t arena_bytes = 0;
  bool arena_is_model_file = false;  // the descriptor is of the bundle-ordered model file
  int64_t control_bytes = 0;
};

}  // namespace isotherm::shm
