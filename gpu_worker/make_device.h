#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "gpu_worker/device.h"
#include "models/model_file.h"

namespace isotherm::gpu {

struct DeviceChoice {
  std::string device = "auto";  // auto, cuda or cpu
  int threads = 0;              // of the host backend
  int32_t kv_pages = 0;
  int32_t max_rows = 256;
  int32_t product_rows = 0;  // CUDA: steps of so many rows on are matrix products; 0: chosen
  int64_t context = 0;
  // cuda: all that the driver counts for this process; -1: what is free, less a reserve.
  // cpu: hot neurons; -1: a quarter of all.
  int64_t vram_budget = -1;
  bool stored_predictor = false;
  double streamed_share = -1;
  bool poison_freed = false;      // cpu; see HostDeviceOptions
  bool early_launch = true;       // CUDA
  bool remote_cold_side = false;  // its neurons cannot be mapped here
};

// The backend that was asked for; auto: a GPU where this build and the machine have one.
// FailedPrecondition when it is not there.
absl::StatusOr<std::unique_ptr<Device>> MakeDevice(const ModelFile& model,
                                                   const DeviceChoice& choice,
                                                   const std::function<void(double)>& progress);

}  // namespace isotherm::gpu
