#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/shm/doorbell.h"
#include "common/tensor/activation.h"
#include "cpu_worker/engine/arena.h"

namespace isotherm::cpu {

struct CpuWorkerOptions {
  std::string model;
  std::string listen;
  std::string socket_dir;
  std::string placement;  // where telemetry goes; empty: nowhere
  ArenaKind arena = ArenaKind::kAuto;
  int num_threads = 0;            // ParseOptions: one a compute CPU, or allowed cores less one
  std::vector<int> compute_cpus;  // that compute threads are bound to; empty: none
  std::string cpus;               // that all other threads keep to; empty: as started
  std::optional<Activation> activation;   // instead of the file's
  std::optional<float> sparse_threshold;  // part of the model's identity; used by the gpu_worker
  shm::WaitOptions wait;
  std::chrono::milliseconds drain_timeout{10'000};
  // 16 MiB/s are 0.3 % of a core, and a round of a 64 GB arena in an hour.
  int64_t scrub_bytes_per_second = int64_t{16} << 20;
  std::string log_level = "info";
  bool supervised = false;
};

// Prints --help and --version itself; `exit_code` is then set and the options are void.
// InvalidArgument says what is wrong and what would work.
absl::StatusOr<CpuWorkerOptions> ParseOptions(int argc, char** argv, std::optional<int>* exit_code);

}  // namespace isotherm::cpu
