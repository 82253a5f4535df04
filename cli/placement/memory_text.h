#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "cli/client/placement_client.h"

namespace isotherm::cli {

// Where the bytes of the gpu_worker's device are, a line with a bar for each purpose that takes
// any; bars are shares of all that is held. Empty when nothing is told.
std::string MemoryText(const MemoryInfo& memory);
nlohmann::ordered_json MemoryJson(const MemoryInfo& memory);

}  // namespace isotherm::cli
