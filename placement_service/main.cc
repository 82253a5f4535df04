#include <CLI/CLI.hpp>
#include <iostream>

#include "common/base/exit_code.h"
#include "common/base/units.h"
#include "common/process/log.h"
#include "common/process/service_process.h"
#include "placement_service/server.h"

int main(int argc, char** argv) {
  isotherm::ShutdownSignal shutdown;
  isotherm::PlacementServiceOptions options;
  std::string log_level = "info", budget = "auto";
  bool supervised = false;
  CLI::App app(
      "isotherm-placement: decides which neurons are hot, keeps every plan in SQLite and brings "
      "the live\n"
      "one to both workers. `isotherm serve` starts it for you.");
  app.set_version_flag("--version", "isotherm 0.1.0");
  app.add_option("--model", options.model, "GGUF file; its profile is looked for beside it")
      ->required();
  app.add_option("--listen", options.listen, "unix:/path.sock or 127.0.0.1:8301; port 0: any")
      ->required();
  app.add_option("--gpu-worker", options.gpu_worker, "address of the gpu_worker")->required();
  app.add_option("--cpu-worker", options.cpu_worker, "address of the cpu_worker")->required();
  app.add_option("--state-dir", options.state_dir, "folder of placement.sqlite; made if missing")
      ->required();
  app.add_option("--budget", budget,
                 "bytes of hot neurons, such as 40MiB; auto: all that the gpu_worker has")
      ->capture_default_str();
  app.add_option("--profile", options.profile, "name in the profile file, such as chat or text");
  app.add_option("--profile-file", options.profile_file,
                 "activation profile; default MODEL.profile.gguf if it is there");
  app.add_option("--log-level", log_level, "trace, debug, info, warn, error or off")
      ->capture_default_str();
  app.add_flag("--supervised", supervised, "end when the parent process ends");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : static_cast<int>(isotherm::ExitCode::kUsage);
  }
  const auto usage = [](const absl::Status& status) {
    std::cerr << status.message() << "\n";
    return static_cast<int>(isotherm::ExitCode::kUsage);
  };
  if (const absl::Status status = isotherm::InitLogging("placement", log_level); !status.ok())
    return usage(status);
  if (supervised && !isotherm::DieWithParent()) return 0;
  if (budget != "auto") {
    const auto bytes = isotherm::ParseBytes(budget);
    if (!bytes.ok()) return usage(bytes.status());
    options.budget_bytes = *bytes;
  }
  if (const absl::Status status = isotherm::Validate(options); !status.ok()) return usage(status);
  return isotherm::ExitWith(isotherm::RunPlacementService(options, shutdown));
}
