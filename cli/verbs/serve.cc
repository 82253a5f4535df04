#include <poll.h>

#include <chrono>
#include <memory>
#include <ostream>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "cli/config/paths.h"
#include "cli/serve/interrupts.h"
#include "cli/serve/local_server.h"
#include "cli/serve/server_view.h"
#include "cli/serve/start_remedy.h"
#include "cli/serve/summary.h"
#include "cli/service/grpc_inference_client.h"
#include "cli/service/grpc_placement_client.h"
#include "cli/verbs/serve_flags.h"
#include "cli/verbs/verb.h"
#include "common/base/status_macros.h"

namespace isotherm::cli {
namespace {

constexpr char kHelp[] =
    "Runs the four services on this host: gateway, gpu-worker, cpu-worker, placement.";
constexpr char kServeExamples[] = R"(Examples:
  isotherm serve smollm2-relu
  isotherm serve model.gguf --grpc-listen 127.0.0.1:9001 --parallel 8
  ISOTHERM_CONTEXT=4K isotherm serve smollm2-relu --config isotherm.yaml

A service that crashes is started again. SIGINT or SIGTERM lets running requests finish (at most
--drain-timeout) and stops all four; a second one stops at once.)";

struct ServeArgs {
  std::string model;
  ServeFlags flags;
};

ServerSummary AskSummary(const LocalServer& server, const ServeOptions& options,
                         double load_seconds) {
  const ServerRecord record = server.record();
  ServerSummary summary{.model_file = record.model,
                        .address = record.gateway,
                        .load_seconds = load_seconds,
                        .parallel = options.parallel};
  if (const auto models = MakeGrpcInferenceClient(record.gateway)->ModelInfo();
      models.ok() && !models->empty()) {
    summary.model = models->front();
  }
  if (const auto plan = MakeGrpcPlacementClient(record.placement)->Show(0, false); plan.ok()) {
    summary.placement = *plan;
  }
  return summary;
}

absl::Status Serve(const ServeArgs& args, VerbContext& context) {
  ISOTHERM_ASSIGN_OR_RETURN(const ServeOptions options, args.flags.Resolve(args.model));
  LocalServerOptions server_options{.serve = options, .program_dir = ProgramDir()};
  ISOTHERM_ASSIGN_OR_RETURN(server_options.model, ResolveModel(options.model, options.model_dir));
  Interrupts interrupts;
  std::error_code error;
  const auto bytes = std::filesystem::file_size(server_options.model, error);
  ServerView view(context.console, error ? 1 : static_cast<int64_t>(bytes), /*quiet=*/false);
  const auto start = std::chrono::steady_clock::now();
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<LocalServer> server,
                            LocalServer::Start(server_options, view));
  bool told = false;
  while (!server->finished()) {
    pollfd fds[2] = {{interrupts.fd(), POLLIN, 0}, {server->event_fd(), POLLIN, 0}};
    if (::poll(fds, 2, -1) < 0) continue;
    server->AckEvent();
    if (server->ready() && !told && !server->finished()) {
      told = true;
      const std::chrono::duration<double> load = std::chrono::steady_clock::now() - start;
      const ServerSummary summary = AskSummary(*server, options, load.count());
      context.console.out << (context.json ? SummaryJson(summary) : SummaryText(summary))
                          << std::flush;
    }
    while (interrupts.Take() != 0) {
      view.Print("isotherm: stopping; running requests may finish (again: stop at once)");
      server->RequestStop();
    }
  }
  return WithStartRemedy(server->result(), server_options.model);
}

}  // namespace

void AddServeVerb(CLI::App& app, VerbContext& context) {
  auto args = std::make_shared<ServeArgs>();
  CLI::App* verb = app.add_subcommand("serve", kHelp);
  verb->footer(kServeExamples);
  verb->add_option("MODEL", args->model, "model file, or a name in --model-dir")->type_name("");
  args->flags.AddTo(*verb, {});
  verb->callback([args, &context] { context.status = Serve(*args, context); });
}

}  // namespace isotherm::cli
