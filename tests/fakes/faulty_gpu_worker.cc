// The gpu_worker around a device that fails when told to: ISOTHERM_TEST_DEVICE_ORDER names the file
// in which a test leaves its order.
#include <cstdlib>
#include <iostream>
#include <optional>

#include "common/process/log.h"
#include "gpu_worker/options.h"
#include "tests/fakes/faulty_device.h"

int main(int argc, char** argv) {
  isotherm::ShutdownSignal shutdown;
  std::optional<int> exit_code;
  auto options = isotherm::gpu::ParseGpuWorkerOptions(argc, argv, &exit_code);
  if (exit_code.has_value()) return *exit_code;
  absl::Status status = options.status();
  if (status.ok()) status = isotherm::InitLogging("gpu_worker", options->log_level);
  const char* const order = std::getenv("ISOTHERM_TEST_DEVICE_ORDER");
  if (status.ok() && order == nullptr)
    status = absl::InvalidArgumentError("ISOTHERM_TEST_DEVICE_ORDER is not set");
  if (!status.ok()) {
    std::cerr << status.message() << "\n";
    return 1;
  }
  if (options->supervised && !isotherm::DieWithParent()) return 0;
  options->wrap_device = [order](std::unique_ptr<isotherm::gpu::Device> device) {
    return std::make_unique<isotherm::gpu::FaultyDevice>(std::move(device), order);
  };
  return isotherm::ExitWith(isotherm::gpu::RunGpuWorker(*options, shutdown));
}
