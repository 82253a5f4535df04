// isotherm-synthetic-model: writes a model of any geometry whose neurons fire as designed.
//
//   isotherm-synthetic-model llama-7b --arena --out /dev/shm/7b.gguf
//   isotherm-synthetic-model llama-7b --drift 0.2 --out 7b-drift.gguf
//   isotherm-synthetic-model llama --layers 4 --dim 512 --ffn 2048 --type q4_0 --rank 256 --out
//   s.gguf
// See bench/synthetic/README.md.

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <optional>
#include <string>
#include <system_error>

#include "absl/strings/str_format.h"
#include "bench/synthetic/synthetic_model.h"
#include "cli/ui/progress_bar.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "common/threading/cores.h"
#include "models/profile/activation_profile.h"

namespace isotherm::bench {
namespace {

struct Flags {
  std::string preset;
  std::string out;
  std::string type;
  std::optional<std::string> name;
  std::optional<int64_t> layers, dim, ffn, heads, kv_heads, rank, vocab, context;
  std::optional<double> activity, skew;
  double drift = 0;
  uint64_t drift_seed = 2;
  uint64_t seed = 1;
  bool arena = false;
  bool force = false;
  bool huge_pages = false;
  int threads = 0;
};

absl::StatusOr<SyntheticOptions> OptionsOf(const Flags& f) {
  SyntheticOptions o;
  if (f.preset == "llama" || f.preset == "falcon") {
    o.name = "synthetic-" + f.preset;
    if (f.preset == "falcon") o.family = SyntheticFamily::kFalcon;
  } else {
    ISOTHERM_ASSIGN_OR_RETURN(o, SyntheticPreset(f.preset));
  }
  if (!f.type.empty()) {
    ISOTHERM_ASSIGN_OR_RETURN(o.dtype, DTypeFromName(f.type));
    // The presets' 1,023 and 511 rows are no whole blocks.
    if (Info(o.dtype).block_elements > 1) o.predictor_rows = (o.predictor_rows + 31) / 32 * 32;
  }
  o.name = f.name.value_or(o.name);
  o.num_layers = f.layers.value_or(o.num_layers);
  o.model_dim = f.dim.value_or(o.model_dim);
  o.ffn_dim = f.ffn.value_or(o.ffn_dim);
  o.num_q_heads = f.heads.value_or(o.num_q_heads);
  o.num_kv_heads = f.kv_heads.value_or(f.heads.value_or(o.num_kv_heads));
  o.predictor_rows = f.rank.value_or(o.predictor_rows);
  o.vocab_size = f.vocab.value_or(o.vocab_size);
  o.context_length = f.context.value_or(o.context_length);
  o.mean_activity = f.activity.value_or(o.mean_activity);
  o.skew = f.skew.value_or(o.skew);
  o.drift = f.drift;
  o.drift_seed = f.drift_seed;
  o.seed = f.seed;
  o.arena = f.arena;
  ISOTHERM_RETURN_IF_ERROR(Validate(o));
  return o;
}

absl::Status Run(const Flags& flags) {
  absl::StatusOr<SyntheticOptions> options = OptionsOf(flags);
  if (!options.ok()) return WithExitCode(options.status(), ExitCode::kUsage);
  std::error_code error;
  if (std::filesystem::exists(flags.out, error)) {
    if (!flags.force) {
      return WithExitCode(absl::InvalidArgumentError(
                              absl::StrFormat("'%s' exists; --force replaces it", flags.out)),
                          ExitCode::kUsage);
    }
    // First, for memory that holds one such file seldom holds two.
    std::filesystem::remove(flags.out, error);
  }
  const int64_t bytes = SyntheticModelBytes(*options);
  const auto start = std::chrono::steady_clock::now();
  cli::Console console = cli::RealConsole();
  cli::ProgressBar bar(console, options->name, bytes);
  ISOTHERM_RETURN_IF_ERROR(
      GenerateSyntheticModel(*options, flags.out,
                             {.num_threads = flags.threads > 0 ? flags.threads : AllowedCores(),
                              .huge_pages = flags.huge_pages,
                              .progress = [&](int64_t done, int64_t) { bar.Update(done); }}));
  bar.Finish();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  absl::PrintF("%s: %s in %.1f s, %.2f GB/s\n", flags.out, FormatBytes(bytes), seconds,
               static_cast<double>(bytes) / 1e9 / seconds);
  return absl::OkStatus();
}

}  // namespace
}  // namespace isotherm::bench

int main(int argc, char** argv) {
  isotherm::bench::Flags flags;
  CLI::App app(
      "Writes a model of random weights whose neurons fire as often as designed, and its\n"
      "activation profile beside it. The same flags give the same bytes on any machine\n"
      "and with any number of threads.",
      "isotherm-synthetic-model");
  app.add_option("PRESET", flags.preset,
                 "llama-7b, llama-13b, falcon-40b; llama or falcon: small, for flags to shape")
      ->required();
  app.add_option("--out", flags.out, "file to write, such as /dev/shm/7b.gguf")->required();
  app.add_flag("--arena", flags.arena,
               "bundle-ordered: both workers map the file; same weights as without");
  app.add_option("--type", flags.type, "of the weights: f16, bf16, q8_0 or q4_0 [f16]");
  app.add_option("--layers", flags.layers);
  app.add_option("--dim", flags.dim, "residual channels");
  app.add_option("--ffn", flags.ffn, "neurons of a layer");
  app.add_option("--heads", flags.heads);
  app.add_option("--kv-heads", flags.kv_heads, "[as --heads]");
  app.add_option("--rank", flags.rank, "rows of the predictors' fc1");
  app.add_option("--vocab", flags.vocab, "tokens, 256 of them single bytes");
  app.add_option("--context", flags.context, "tokens of a sequence [4096]");
  app.add_option("--activity", flags.activity, "share of the neurons that fire");
  app.add_option("--skew", flags.skew, "0: all fire alike");
  app.add_option(
         "--drift", flags.drift,
         "share of the neurons whose ranks differ for tokens of the vocabulary's upper half")
      ->capture_default_str();
  app.add_option("--drift-seed", flags.drift_seed)->capture_default_str();
  app.add_option("--seed", flags.seed)->capture_default_str();
  app.add_option("--name", flags.name, "general.name of the model");
  app.add_option("--threads", flags.threads, "0: allowed cores")
      ->capture_default_str()
      ->check(CLI::Range(0, 1024));
  app.add_flag("--huge-pages", flags.huge_pages,
               "on tmpfs: take 2 MiB pages, as far as the host gives them");
  app.add_flag("--force", flags.force, "replace the file; it is removed first");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& parse_error) {
    const int code = app.exit(parse_error);
    return code == 0 ? 0 : static_cast<int>(isotherm::ExitCode::kUsage);
  }
  const absl::Status status = isotherm::bench::Run(flags);
  if (status.ok()) return 0;
  std::cerr << status.message() << "\n";
  return static_cast<int>(isotherm::ExitCodeOf(status));
}
