#include <CLI/CLI.hpp>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/exit_code.h"
#include "common/base/units.h"
#include "common/process/flags.h"
#include "common/process/log.h"
#include "common/process/service_process.h"
#include "gateway/server.h"
#include "gateway/text/gguf_text_model.h"

namespace isotherm {
namespace {

struct Options {
  std::string model;
  std::string chat_template;
  std::string log_level = "info";
  std::string cpus;
  bool supervised = false;
  std::string drain_timeout = "300s";
  GatewayOptions gateway;
};

// "/models/smollm2-relu-Q8_0.gguf" -> "smollm2-relu-Q8_0"
std::string NameOf(absl::string_view path) {
  path = path.substr(path.rfind('/') + 1);
  return std::string(path.substr(0, path.rfind(".gguf")));
}

void AddFlags(CLI::App& app, Options& options) {
  GatewayOptions& gateway = options.gateway;
  app.add_option("--model", options.model, "GGUF file; only its text side is read")->required();
  app.add_option("--listen", gateway.listen,
                 "unix:/path.sock or 127.0.0.1:port; port 0 takes any free one, and stdout says "
                 "which")
      ->capture_default_str();
  app.add_option("--gpu-worker", gateway.gpu_worker, "address of the gpu_worker")->required();
  app.add_option("--cpu-worker", gateway.cpu_worker, "address of the cpu_worker; empty: none");
  app.add_option("--placement", gateway.placement, "address of the placement_service; empty: none");
  app.add_option("--alias", gateway.alias, "another name that clients may call the model by");
  app.add_option("--parallel", gateway.scheduler.max_sequences, "sequences that run at once")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--max-queue", gateway.scheduler.max_queue,
                 "requests that may wait; more are refused at once")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  app.add_option("--chat-template", options.chat_template,
                 "file or built-in (chatml, llama2, alpaca, plain) instead of the model's own");
  app.add_option("--drain-timeout", options.drain_timeout,
                 "what running requests get after SIGTERM: 300s, 5m, a bare number is seconds")
      ->capture_default_str();
  app.add_option("--cpus", options.cpus, "CPUs that this process keeps to, such as 0 or 0-1");
  app.add_option("--log-level", options.log_level, "trace, debug, info, warn, error or off")
      ->capture_default_str();
  app.add_flag("--supervised", options.supervised,
               "end when the process that started this one does");
  app.set_version_flag("--version", "isotherm-gateway " ISOTHERM_VERSION);
  app.footer(
      "Clients speak isotherm.v1.InferenceService to it; health and reflection are there too.\n"
      "Example: isotherm-gateway --model m.gguf --listen 127.0.0.1:8001 \\\n"
      "           --gpu-worker unix:/run/isotherm/gpu.sock --cpu-worker "
      "unix:/run/isotherm/cpu.sock");
}

int Run(ShutdownSignal& shutdown, Options options) {
  const auto drain_timeout = ParseDuration(options.drain_timeout);
  if (!drain_timeout.ok()) return ExitWith(drain_timeout.status());
  options.gateway.model_name = NameOf(options.model);
  auto gateway = GatewayServer::Start(options.gateway, [] { AnnounceReady(); });
  if (!gateway.ok()) return ExitWith(gateway.status());
  AnnounceListening((*gateway)->address());
  auto model = LoadGgufTextModel({.path = options.model,
                                  .name = options.gateway.model_name,
                                  .chat_template = options.chat_template});
  if (!model.ok()) return ExitWith(model.status());
  (*gateway)->SetModel(*std::move(model));
  shutdown.Wait();
  LogInfo("draining");
  const bool finished = (*gateway)->Drain(*drain_timeout);
  return static_cast<int>(finished ? ExitCode::kOk : ExitCode::kDrainCut);
}

}  // namespace
}  // namespace isotherm

int main(int argc, char** argv) {
  using namespace isotherm;  // main only
  ShutdownSignal shutdown;
  Options options;
  CLI::App app("Isotherm's gateway: takes requests, schedules steps on the workers.",
               "isotherm-gateway");
  AddFlags(app, options);
  std::optional<int> exit_code;
  const absl::Status parsed = ParseFlags(app, argc, argv, &exit_code);
  if (exit_code.has_value()) return *exit_code;
  const std::string level = parsed.ok() ? options.log_level : "info";
  if (absl::Status status = InitLogging("gateway", level); !status.ok()) {
    std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
    return ExitWith(status);
  }
  if (!parsed.ok()) return ExitWith(parsed);
  if (options.supervised && !DieWithParent()) return static_cast<int>(ExitCode::kOk);
  if (absl::Status status = ConfineProcess(options.cpus); !status.ok()) return ExitWith(status);
  return Run(shutdown, std::move(options));
}
