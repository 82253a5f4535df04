#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "common/process/service_process.h"
#include "gpu_worker/device.h"
#include "gpu_worker/engine/kv_lease.h"
#include "models/model_config.h"

namespace isotherm::gpu {

struct GpuWorkerOptions {
  std::string model;
  std::string listen;
  std::string cpu_worker;         // empty: none, this process holds all neurons
  std::string placement;          // where telemetry goes; empty: nowhere
  std::string device = "auto";    // auto, cuda or cpu
  std::string transport = "shm";  // shm or grpc
  int threads = 0;                // 0: allowed cores
  std::string cpus;               // of this process while a GPU computes; empty: as started
  int64_t context = 0;            // tokens of a sequence; 0: what the model and --kv-bytes allow
  int32_t parallel = 4;           // sequences of `context` tokens that the KV pool holds
  int64_t kv_bytes = int64_t{1} << 30;
  int32_t max_rows = 256;    // of a step
  int64_t vram_budget = -1;  // see DeviceChoice
  // KV that is always there; hot neurons lend the rest, up to kv_bytes. -1: all of it is.
  int64_t kv_floor = -1;
  std::chrono::milliseconds kv_hold = KvLeaseOptions().hold;
  bool poison_freed = false;             // tests: freed neurons are overwritten
  int64_t move_rate = int64_t{1} << 30;  // bytes a second that a migration copies under load
  bool stored_predictor = false;
  double streamed_share = -1;  // of cold neurons, read by the GPU over PCIe; -1: adapted
  ModelOptions model_options;
  std::string log_level = "info";
  bool supervised = false;  // ends with the process that started this one
  // No flag sets it. A test's worker puts a device that fails around the real one.
  std::function<std::unique_ptr<Device>(std::unique_ptr<Device>)> wrap_device;
};

// The first fault of the options, with exit code 64.
absl::Status Validate(const GpuWorkerOptions& options);

// Listens, loads, serves until `shutdown` fires, drains. The status carries the exit code.
absl::Status RunGpuWorker(const GpuWorkerOptions& options, ShutdownSignal& shutdown);

}  // namespace isotherm::gpu
