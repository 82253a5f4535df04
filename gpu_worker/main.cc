#include <iostream>
#include <optional>

#include "common/base/exit_code.h"
#include "common/process/log.h"
#include "common/process/service_process.h"
#include "gpu_worker/options.h"
#include "gpu_worker/server.h"

int main(int argc, char** argv) {
  isotherm::ShutdownSignal shutdown;
  std::optional<int> exit_code;
  const auto options = isotherm::gpu::ParseGpuWorkerOptions(argc, argv, &exit_code);
  if (exit_code.has_value()) return *exit_code;
  absl::Status status = options.status();
  if (status.ok()) status = isotherm::InitLogging("gpu-worker", options->log_level);
  if (!status.ok()) {
    std::cerr << status.message() << "\n";
    return static_cast<int>(isotherm::ExitCode::kUsage);
  }
  if (options->supervised && !isotherm::DieWithParent()) return 0;
  return isotherm::ExitWith(isotherm::gpu::RunGpuWorker(*options, shutdown));
}
