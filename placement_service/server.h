#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "common/process/service_process.h"

namespace isotherm {

struct PlacementServiceOptions {
  std::string model;
  std::string listen;
  std::string gpu_worker;
  std::string cpu_worker;
  std::string state_dir;
  int64_t budget_bytes = -1;  // -1: all that the gpu_worker has
  std::string profile;        // empty: chat, or the file's first
  std::string profile_file;   // empty: what lies beside the model, if anything
};

// The first fault of the options, with exit code 64.
absl::Status Validate(const PlacementServiceOptions& options);

// Listens, publishes, serves until `shutdown` fires. The status carries the exit code.
absl::Status RunPlacementService(const PlacementServiceOptions& options, ShutdownSignal& shutdown);

}  // namespace isotherm
