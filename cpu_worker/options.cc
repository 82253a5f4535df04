#include "cpu_worker/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/process/flags.h"
#include "common/threading/cores.h"
#include "common/threading/cpu_list.h"

namespace isotherm::cpu {
namespace {

constexpr char kAbout[] =
    "Computes the cold neurons of a sparse model on this machine's cores, for one gpu_worker.\n"
    "It loads every feed-forward neuron into shared memory, announces\n"
    "  listening ADDR | progress SHARE | ready\n"
    "on stdout, and serves until SIGTERM. `isotherm serve` starts it with the other services.";

constexpr char kFooter[] =
    "Example:\n"
    "  isotherm-cpu-worker --model model.gguf --listen unix:/run/isotherm/cpu.sock \\\n"
    "      --socket-dir /run/isotherm\n"
    "Exit codes: 0 done, 64 flags, 65 bad model, 70 internal, 71 memory or port short, 75 drain "
    "cut work.";

// On fewer cores a spinning waiter takes the very core that its peer computes on. Two cores,
// SmolLM2-ReLU Q8_0, a quarter of the neurons hot, tokens/s with 2 + 1 threads: 245 without
// spinning, 217 at 20 us, 161 at 60 us; a second thread here costs another 10 %.
constexpr int kCoresForSpins = 4;

}  // namespace

absl::StatusOr<CpuWorkerOptions> ParseOptions(int argc, char** argv,
                                              std::optional<int>* exit_code) {
  CpuWorkerOptions options;
  std::string activation, compute_cpus;
  std::string arena = "auto";
  float threshold = 0;
  int64_t spin_us = -1, device_spin_us = -1;
  int64_t drain_ms = options.drain_timeout.count();
  int64_t scrub_mib = options.scrub_bytes_per_second >> 20;
  CLI::App app(kAbout, "isotherm-cpu-worker");
  app.footer(kFooter);
  app.set_version_flag("--version", "isotherm-cpu-worker " ISOTHERM_VERSION);
  app.add_option("--model", options.model, "GGUF file")->required();
  app.add_option("--listen", options.listen,
                 "gRPC address: unix:/path.sock, or 127.0.0.1:PORT (0: any free one)")
      ->required();
  app.add_option("--socket-dir", options.socket_dir,
                 "directory for the socket that hands shared memory over")
      ->required();
  app.add_option("--placement", options.placement,
                 "gRPC address of the placement_service, which is told what was counted; empty: "
                 "nobody");
  app.add_option("--threads", options.num_threads, "compute threads; 0: allowed cores less one")
      ->check(CLI::Range(0, 1024));
  app.add_option("--arena", arena,
                 "map: serve a bundle-ordered model file in place; copy: fill memory; auto: map "
                 "what lies in memory (tmpfs)")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "map", "copy"}));
  app.add_option("--compute-cpus", compute_cpus,
                 "CPUs that compute threads are bound to, one each, such as 1-15");
  app.add_option("--cpus", options.cpus,
                 "CPUs that the other threads of this process keep to, such as 0");
  app.add_option("--activation", activation, "relu, silu or gelu instead of the file's")
      ->check(CLI::IsMember({"relu", "silu", "gelu"}));
  CLI::Option* const threshold_option = app.add_option(
      "--sparse-threshold", threshold,
      "the predictor threshold that the gpu_worker was given; both must name one model");
  app.add_option("--spin-us", spin_us,
                 "how long to spin for the gpu_worker before sleeping; -1: by cores")
      ->capture_default_str()
      ->check(CLI::Range(-1, 100'000));
  app.add_option("--device-spin-us", device_spin_us,
                 "the same for a gpu_worker whose GPU cannot wake a sleeper; -1: by cores")
      ->capture_default_str()
      ->check(CLI::Range(-1, 1'000'000));
  app.add_option("--drain-timeout-ms", drain_ms, "after SIGTERM, time for the steps under way")
      ->capture_default_str()
      ->check(CLI::Range(0, 600'000));
  app.add_option(
         "--scrub-mib-per-second", scrub_mib,
         "how fast the neurons in memory are looked through for flipped bits; 0: not at all")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 20));
  app.add_option("--log-level", options.log_level, "trace, debug, info, warn, error or off")
      ->capture_default_str();
  app.add_flag("--supervised", options.supervised, "end when the process that started this ends");
  ISOTHERM_RETURN_IF_ERROR(ParseFlags(app, argc, argv, exit_code));
  if (exit_code->has_value()) return options;
  options.arena = arena == "map"    ? ArenaKind::kMap
                  : arena == "copy" ? ArenaKind::kCopy
                                    : ArenaKind::kAuto;
  if (!activation.empty()) {
    ISOTHERM_ASSIGN_OR_RETURN(options.activation, ActivationFromName(activation));
  }
  if (threshold_option->count() > 0) options.sparse_threshold = threshold;
  const int cores = AllowedCores();
  const auto cpu_list = ParseCpuList(compute_cpus);
  if (!cpu_list.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--compute-cpus ", compute_cpus, "; want CPU numbers such as 1-15 or 1,3,5"));
  }
  options.compute_cpus = *cpu_list;
  if (options.num_threads == 0) {
    options.num_threads = options.compute_cpus.empty()
                              ? std::max(1, cores - 1)
                              : static_cast<int>(options.compute_cpus.size());
  }
  if (device_spin_us >= 0) {
    options.wait.device_spin = std::chrono::microseconds(device_spin_us);
  } else if (cores < kCoresForSpins) {
    options.wait.device_spin = std::chrono::microseconds(0);
  }
  options.wait.spin = spin_us >= 0             ? std::chrono::microseconds(spin_us)
                      : cores < kCoresForSpins ? std::chrono::microseconds(0)
                                               : options.wait.spin;
  options.drain_timeout = std::chrono::milliseconds(drain_ms);
  options.scrub_bytes_per_second = scrub_mib << 20;
  return options;
}

}  // namespace isotherm::cpu
