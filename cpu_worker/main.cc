#include <cstdio>
#include <optional>

#include "common/process/log.h"
#include "common/process/service_process.h"
#include "cpu_worker/options.h"
#include "cpu_worker/server.h"

int main(int argc, char** argv) {
  isotherm::ShutdownSignal shutdown;
  std::optional<int> exit_code;
  const auto options = isotherm::cpu::ParseOptions(argc, argv, &exit_code);
  if (exit_code.has_value()) return *exit_code;
  const std::string level = options.ok() ? options->log_level : "info";
  if (absl::Status status = isotherm::InitLogging("cpu_worker", level); !status.ok()) {
    std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
    return isotherm::ExitWith(status);
  }
  if (!options.ok()) return isotherm::ExitWith(options.status());
  // Before any thread starts: compute threads bind themselves elsewhere.
  if (absl::Status status = isotherm::ConfineProcess(options->cpus); !status.ok()) {
    return isotherm::ExitWith(status);
  }
  if (options->supervised && !isotherm::DieWithParent()) return 0;
  return isotherm::ExitWith(isotherm::cpu::RunServer(*options, shutdown));
}
