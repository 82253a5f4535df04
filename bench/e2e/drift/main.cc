// isotherm-bench-drift: decode speed over time on a running server while its traffic changes.
//
//   isotherm-bench-drift --url unix:/run/gateway.sock --name live --phase designed:2000 --phase
//   drifted:4000
//   isotherm-bench-drift --summary rows.jsonl
//
// For synthetic models with --drift: the class of a prompt's last token decides which neurons fire
// often (bench/synthetic/README.md). Requests run one after the other. One JSON line for each, as
// it ends; or, of the lines that bench/run_drift gathered, one that says what they say together.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "bench/e2e/drift/drift_summary.h"
#include "cli/client/inference_client.h"
#include "cli/service/grpc_inference_client.h"
#include "common/base/status_macros.h"

namespace isotherm::bench {
namespace {

constexpr int kPrompt = 8;

struct Phase {
  std::string tokens;  // designed: of the vocabulary's lower half, drifted: of the upper
  int64_t count = 0;   // generated in all
};

absl::StatusOr<Phase> ParsePhase(const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  Phase phase;
  if (parts.size() != 2 || (parts[0] != "designed" && parts[0] != "drifted") ||
      !absl::SimpleAtoi(parts[1], &phase.count) || phase.count < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("--phase ", text, "; want designed:TOKENS or drifted:TOKENS"));
  }
  phase.tokens = parts[0];
  return phase;
}

class NoText final : public cli::TextSink {
 public:
  bool OnText(absl::string_view) override { return true; }
};

struct Flags {
  std::string url, name;
  std::vector<std::string> phases;
  int64_t vocab = 32'000;
  int64_t tokens = 200;  // of a request
  uint64_t seed = 1;
  double time_limit = 0;  // seconds, no request begins after; 0: none
  std::string summary;
  double scale = 1;
};

absl::Status Run(const Flags& flags) {
  const std::unique_ptr<cli::InferenceClient> client = cli::MakeGrpcInferenceClient(flags.url);
  std::mt19937_64 rng(flags.seed);
  NoText sink;
  std::vector<Phase> phases;
  for (const std::string& text : flags.phases) {
    ISOTHERM_ASSIGN_OR_RETURN(Phase phase, ParsePhase(text));
    phases.push_back(std::move(phase));
  }
  const auto start = std::chrono::steady_clock::now();
  for (const Phase& phase : phases) {
    // The lowest 259 ids of a synthetic vocabulary are bytes and control tokens.
    const int64_t low = phase.tokens == "designed" ? 300 : flags.vocab / 2;
    const int64_t high = phase.tokens == "designed" ? flags.vocab / 2 : flags.vocab;
    for (int64_t done = 0; done < phase.count;) {
      const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
      if (flags.time_limit > 0 && spent.count() >= flags.time_limit) {
        return absl::DeadlineExceededError(absl::StrCat("the time limit of ", flags.time_limit,
                                                        " s passed after ", done, " of ",
                                                        phase.count, " tokens, ", phase.tokens));
      }
      cli::GenerateParams params{.temperature = 1,
                                 .seed = static_cast<int64_t>(rng() >> 2),
                                 .max_tokens = std::min(flags.tokens, phase.count - done),
                                 .ignore_eos = true};
      for (int i = 0; i < kPrompt; ++i) {
        params.token_ids.push_back(static_cast<int32_t>(
            low + static_cast<int64_t>(rng() % static_cast<uint64_t>(high - low))));
      }
      ISOTHERM_ASSIGN_OR_RETURN(const cli::GenerateStats stats, client->Generate(params, sink));
      done += stats.completion_tokens;
      std::cout << nlohmann::ordered_json{{"name", flags.name},
                                          {"figure", "drift"},
                                          {"tokens", phase.tokens},
                                          {"done", done},
                                          {"tokens_per_second", stats.TokensPerSecond()},
                                          {"hit_share", stats.gpu_hit_share},
                                          {"epoch", stats.epoch}}
                << std::endl;
    }
  }
  return absl::OkStatus();
}

int PrintSummary(const Flags& flags) {
  std::ifstream file(flags.summary);
  if (!file) {
    std::cerr << "isotherm-bench-drift: cannot read " << flags.summary << "\n";
    return 65;
  }
  const absl::StatusOr<std::vector<DriftRow>> rows = ReadDriftRows(file);
  if (!rows.ok()) {
    std::cerr << "isotherm-bench-drift: " << flags.summary << ": " << rows.status().message()
              << "\n";
    return 65;
  }
  std::cout << ToJson(Summarize(*rows, flags.scale)) << std::endl;
  return 0;
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app(
      "Decode speed over time on a running server while its traffic changes: JSON lines.\n\n"
      "  isotherm-bench-drift --url unix:/run/gateway.sock --phase designed:2000 --phase "
      "drifted:4000");
  app.add_option("--url", flags.url, "gateway: HOST:PORT or unix:/PATH");
  app.add_option("--phase", flags.phases, "designed:TOKENS or drifted:TOKENS, in turn");
  app.add_option("--name", flags.name, "of the row");
  app.add_option("--vocab", flags.vocab, "of the model")->capture_default_str();
  app.add_option("--tokens", flags.tokens, "generated by one request")->capture_default_str();
  app.add_option("--seed", flags.seed, "of prompts and samples")->capture_default_str();
  app.add_option("--time-limit", flags.time_limit,
                 "seconds after which no request begins any more (exit code 75); 0: none")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--summary", flags.summary,
                 "sum up the JSON lines of this file instead: before and after the change, against "
                 "a fresh profile and no re-placement, and without a profile");
  app.add_option("--scale", flags.scale, "of --summary: phases were so many times shorter")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  if (!flags.summary.empty()) return PrintSummary(flags);
  if (flags.url.empty() || flags.phases.empty()) {
    std::cerr << "isotherm-bench-drift: --url and --phase are wanted, or --summary\n";
    return 64;
  }
  if (flags.vocab < 1000 || flags.tokens < 2) {
    std::cerr << "isotherm-bench-drift: --vocab from 1000, --tokens from 2\n";
    return 64;
  }
  if (const absl::Status status = Run(flags); !status.ok()) {
    std::cerr << "isotherm-bench-drift: " << status.message() << "\n";
    return absl::IsInvalidArgument(status) ? 64 : absl::IsDeadlineExceeded(status) ? 75 : 69;
  }
  return 0;
}

}  // namespace
}  // namespace isotherm::bench

int main(int argc, char** argv) { return isotherm::bench::Main(argc, argv); }
