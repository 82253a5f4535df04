#include "gpu_worker/options.h"

#include <CLI/CLI.hpp>
#include <string>

#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "common/process/flags.h"

namespace isotherm::gpu {

absl::StatusOr<GpuWorkerOptions> ParseGpuWorkerOptions(int argc, char** argv,
                                                       std::optional<int>* exit_code) {
  GpuWorkerOptions options;
  std::string activation, budget = "auto", kv_bytes = "1GiB", kv_floor = "all", move_rate = "1GiB",
                          predictor_type = "8bit";
  float threshold = 0;
  int64_t kv_hold_ms = options.kv_hold.count();
  CLI::App app(
      "isotherm-gpu-worker: attention, KV cache, predictors, hot neurons and sampling of one GPU.\n"
      "With --device cpu the same work runs on CPU threads. `isotherm serve` starts it for you.",
      "isotherm-gpu-worker");
  app.set_version_flag("--version", "isotherm-gpu-worker " ISOTHERM_VERSION);
  app.add_option("--model", options.model, "GGUF file")->required();
  app.add_option("--listen", options.listen, "unix:/path.sock or 127.0.0.1:8101; port 0: any")
      ->required();
  app.add_option("--cpu-worker", options.cpu_worker,
                 "address of the cpu_worker; empty: this process holds all neurons");
  app.add_option("--device", options.device, "auto (a GPU if there is one), cuda or cpu")
      ->capture_default_str();
  app.add_option("--transport", options.transport, "to the cpu_worker: shm (same host) or grpc")
      ->capture_default_str();
  app.add_option("--threads", options.threads, "compute threads; 0: every core allowed")
      ->capture_default_str();
  app.add_option(
      "--cpus", options.cpus,
      "with a GPU: CPUs that this process keeps to once it has loaded, such as 0 or 0-1");
  app.add_option("--context", options.context, "tokens of a sequence; 0: what fits")
      ->capture_default_str();
  app.add_option("--parallel", options.parallel, "sequences the KV cache is made for")
      ->capture_default_str();
  app.add_option("--kv-bytes", kv_bytes, "upper bound of the KV cache")->capture_default_str();
  app.add_option("--max-rows", options.max_rows, "rows of a step, at most 4096")
      ->capture_default_str();
  app.add_option(
         "--vram-budget", budget,
         "with a GPU: all its memory that this process may take, such as 8GiB; with cpu: "
         "bytes of hot neurons; auto: what is free less 512 MiB, or a quarter of the neurons. Hot "
         "neurons take what the rest leaves, or less: `isotherm placement budget`")
      ->capture_default_str();
  app.add_option("--predictor-type", predictor_type,
                 "8bit (smaller: more room for hot neurons) or stored (as in the file); GPU only")
      ->check(CLI::IsMember({"8bit", "stored"}))
      ->capture_default_str();
  app.add_option("--streamed-share", options.streamed_share,
                 "share of the cold neurons that the GPU reads over PCIe, 0 to 1; -1: adapted to "
                 "who finishes last")
      ->check(CLI::Range(-1.0, 1.0))
      ->capture_default_str();
  app.add_option("--placement", options.placement,
                 "address of the placement_service, which is told what was counted; empty: nobody");
  app.add_option("--move-rate", move_rate,
                 "bytes a second that a migration copies while steps run; 0: no limit")
      ->capture_default_str();
  app.add_option("--kv-floor", kv_floor,
                 "bytes of KV pages that are always there; beyond them, up to --kv-bytes, hot "
                 "neurons lend theirs while requests need more (cpu device). all: none is lent")
      ->capture_default_str();
  app.add_option("--kv-hold-ms", kv_hold_ms,
                 "lent pages that nobody wanted for so long go back to hot neurons")
      ->capture_default_str()
      ->check(CLI::Range(0, 3'600'000));
  app.add_flag("--poison-freed", options.poison_freed,
               "cpu device: overwrites neurons that are freed, so that a late reader shows")
      ->group("");  // for tests
  app.add_option("--activation", activation, "relu, silu or gelu, instead of the file's");
  CLI::Option* threshold_option =
      app.add_option("--sparse-threshold", threshold, "predictor threshold, instead of the file's");
  app.add_option("--log-level", options.log_level, "trace, debug, info, warn, error or off")
      ->capture_default_str();
  app.add_flag("--supervised", options.supervised, "end when the parent process ends");
  ISOTHERM_RETURN_IF_ERROR(ParseFlags(app, argc, argv, exit_code));
  if (exit_code->has_value()) return options;
  if (budget != "auto") {
    ISOTHERM_ASSIGN_OR_RETURN(options.vram_budget, ParseBytes(budget));
  }
  ISOTHERM_ASSIGN_OR_RETURN(options.kv_bytes, ParseBytes(kv_bytes));
  options.kv_hold = std::chrono::milliseconds(kv_hold_ms);
  if (kv_floor != "all") {
    ISOTHERM_ASSIGN_OR_RETURN(options.kv_floor, ParseBytes(kv_floor));
  }
  ISOTHERM_ASSIGN_OR_RETURN(options.move_rate, ParseBytes(move_rate));
  options.stored_predictor = predictor_type == "stored";
  if (!activation.empty()) {
    ISOTHERM_ASSIGN_OR_RETURN(options.model_options.activation, ActivationFromName(activation));
  }
  if (threshold_option->count() > 0) options.model_options.sparse_threshold = threshold;
  ISOTHERM_RETURN_IF_ERROR(Validate(options));
  return options;
}

}  // namespace isotherm::gpu
