#include <cstdio>
#include <optional>
#include <string>

#include "common/process/log.h"
#include "common/process/service_process.h"
#include "gpu_worker/options.h"
#include "gpu_worker/server.h"

int main(int argc, char** argv) {
  isotherm::ShutdownSignal shutdown;
  std::optional<int> exit_code;
  const auto options = isotherm::gpu::ParseGpuWorkerOptions(argc, argv, &exit_code);
  if (exit_code.has_value()) return *exit_code;
  const std::string level = options.ok() ? options->log_level : "info";
  if (absl::Status status = isotherm::InitLogging("gpu_worker", level); !status.ok()) {
    std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
    return isotherm::ExitWith(status);
  }
  if (!options.ok()) return isotherm::ExitWith(options.status());
  if (options->supervised && !isotherm::DieWithParent()) return 0;
  return isotherm::ExitWith(isotherm::gpu::RunGpuWorker(*options, shutdown));
}
