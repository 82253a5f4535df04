#include "placement_service/options.h"

#include <CLI/CLI.hpp>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "common/process/flags.h"

namespace isotherm {
namespace {

constexpr char kAbout[] =
    "Decides which neurons of a sparse model are hot, that is, live on the GPU, and brings the "
    "plan\n"
    "to both workers. Plans, budgets and rollbacks are kept in --state-dir and survive a restart.\n"
    "It announces\n"
    "  listening ADDR | ready\n"
    "on stdout, and serves until SIGTERM. `isotherm serve` starts it with the other services;\n"
    "`isotherm placement` shows and changes plans.";

constexpr char kFooter[] =
    "Example:\n"
    "  isotherm-placement --model model.gguf --listen unix:/run/isotherm/placement.sock \\\n"
    "      --gpu-worker unix:/run/isotherm/gpu.sock --cpu-worker unix:/run/isotherm/cpu.sock \\\n"
    "      --state-dir /var/lib/isotherm --budget 6GiB\n"
    "Exit codes: 0 done, 64 flags, 65 bad plan store or profile, 70 internal, 71 the store is in\n"
    "use, its disk is full, or the port is taken.";

}  // namespace

absl::StatusOr<PlacementOptions> ParsePlacementOptions(int argc, char** argv,
                                                       std::optional<int>* exit_code) {
  PlacementOptions options;
  std::string budget = "auto";
  CLI::App app(kAbout, "isotherm-placement");
  app.footer(kFooter);
  app.set_version_flag("--version", "isotherm-placement " ISOTHERM_VERSION);
  app.add_option("--model", options.model, "GGUF file that the workers serve")->required();
  app.add_option("--listen", options.listen,
                 "gRPC address: unix:/path.sock, or 127.0.0.1:PORT (0: any free one)")
      ->required();
  app.add_option("--gpu-worker", options.gpu_worker, "gRPC address of the gpu_worker")->required();
  app.add_option("--cpu-worker", options.cpu_worker,
                 "gRPC address of the cpu_worker; empty: there is none");
  app.add_option("--state-dir", options.state_dir, "directory of the plan store; made if missing")
      ->required();
  app.add_option(
         "--budget", budget,
         "bytes of hot neurons, like 6GiB, until an operator sets others; auto, and at most: "
         "all that the gpu_worker's --vram-budget leaves them")
      ->capture_default_str();
  app.add_option("--profile", options.profile,
                 "activation profile in the file; default: chat if there is one, else the first");
  app.add_option("--profile-file", options.profile_file,
                 "activation profiles; default: MODEL.profile.gguf beside the model, if it exists");
  std::string follow = "on", objective = "auto";
  app.add_option("--follow", follow,
                 "on: neurons move with the traffic by themselves; off: only when asked")
      ->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str();
  app.add_option("--objective", objective,
                 "what plans are solved for: bytes read by the cold side, measured time, or auto: "
                 "time on a GPU")
      ->check(CLI::IsMember({"auto", "bytes", "time"}))
      ->capture_default_str();
  app.add_option("--half-life", options.half_life_tokens,
                 "tokens after which what was seen of the traffic counts half")
      ->check(CLI::Range(10.0, 1e12))
      ->capture_default_str();
  app.add_option(
         "--moves-per-second", options.moves_per_second,
         "share of the budget that neurons moving by themselves may take a second; more "
         "when the traffic has drifted and while it is learnt without a profile; 0: nothing")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--cpus", options.cpus, "CPUs that this process keeps to, such as 0 or 0-1");
  app.add_option("--log-level", options.log_level, "trace, debug, info, warn, error or off")
      ->capture_default_str();
  app.add_flag("--supervised", options.supervised, "end when the process that started this ends");
  ISOTHERM_RETURN_IF_ERROR(ParseFlags(app, argc, argv, exit_code));
  if (exit_code->has_value()) return options;
  options.follow = follow == "on";
  options.objective = objective == "bytes"  ? PlanObjective::kBytes
                      : objective == "time" ? PlanObjective::kTime
                                            : PlanObjective::kAuto;
  if (budget != "auto") {
    ISOTHERM_ASSIGN_OR_RETURN(options.budget_bytes, ParseBytes(budget));
    if (options.budget_bytes < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("--budget ", budget, "; 0 or more bytes, or auto"));
    }
  }
  return options;
}

}  // namespace isotherm
