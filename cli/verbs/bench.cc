#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/bench/bench_runner.h"
#include "cli/serve/session.h"
#include "cli/service/grpc_inference_client.h"
#include "cli/ui/remedy.h"
#include "cli/verbs/serve_flags.h"
#include "cli/verbs/verb.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"

namespace isotherm::cli {
namespace {

constexpr char kExamples[] = R"(Examples:
  isotherm bench smollm2-relu
  isotherm bench smollm2-relu --prompt 64 --gen 128 --concurrency 1,4 --repeat 5
  isotherm bench smollm2-relu --json > result.json

Measures prompts of --prompt tokens with --gen generated tokens, in turn with predicted and with all
neurons. Uses the running server, the one at --url, or starts the four services for the while.)";

struct BenchArgs {
  std::string model;
  std::string url;
  int64_t prompt_tokens = 64;
  int64_t generated_tokens = 128;
  std::vector<int64_t> concurrency = {1};
  int64_t repeats = 3;
  ServeFlags serve;
};

absl::Status Bench(const BenchArgs& args, VerbContext& context) {
  ISOTHERM_ASSIGN_OR_RETURN(const ServeOptions options, args.serve.Resolve(args.model));
  Interrupts interrupts;
  ISOTHERM_ASSIGN_OR_RETURN(
      const std::unique_ptr<Session> session,
      Session::Open(options, args.url, context.console, interrupts, MakeGrpcInferenceClient));
  ISOTHERM_ASSIGN_OR_RETURN(const ServedModel model, session->Model());
  if (args.prompt_tokens + args.generated_tokens > model.context_length) {
    return WithTry(WithExitCode(absl::InvalidArgumentError(absl::StrCat(
                                    args.prompt_tokens, " + ", args.generated_tokens,
                                    " tokens exceed the context of ", model.context_length)),
                                ExitCode::kUsage),
                   "a smaller --prompt or --gen, or a larger --context");
  }
  InferenceClient& client = session->client();
  BenchPlan plan{.generated_tokens = args.generated_tokens,
                 .concurrency = args.concurrency,
                 .repeats = args.repeats};
  ISOTHERM_ASSIGN_OR_RETURN(plan.prompt, MakeBenchPrompt(client, args.prompt_tokens));

  std::vector<std::unique_ptr<BenchSource>> sources;
  if (model.sparse) {
    sources.push_back(MakeServerSource(client, "isotherm, predictor", /*exact=*/false));
  }
  sources.push_back(MakeServerSource(client, "isotherm, all neurons (exact)", /*exact=*/true));

  absl::StatusOr<std::vector<BenchRow>> rows =
      RunBench(plan, sources, [&](int64_t done, int64_t total) {
        if (context.console.err_is_terminal) {
          context.console.err << "\rrun " << done << " of " << total << "\033[K" << std::flush;
          if (done == total) context.console.err << "\r\033[K" << std::flush;
        }
        return interrupts.Take() == 0;
      });
  if (absl::IsCancelled(rows.status())) return InterruptedError();
  ISOTHERM_RETURN_IF_ERROR(rows.status());
  if (context.json) {
    context.console.out << BenchJson(*rows, args.prompt_tokens, args.generated_tokens);
  } else {
    context.console.out << model.name << ", " << args.prompt_tokens << " prompt tokens, "
                        << args.generated_tokens << " generated, " << args.repeats << " repeats\n"
                        << BenchTable(*rows);
  }
  return absl::OkStatus();
}

}  // namespace

void AddBenchVerb(CLI::App& app, VerbContext& context) {
  auto args = std::make_shared<BenchArgs>();
  CLI::App* verb = app.add_subcommand("bench", "Measures speed: first token, tokens/s, hit share.");
  verb->footer(kExamples);
  verb->add_option("MODEL", args->model, "model file, or a name in --model-dir")
      ->required()
      ->type_name("");
  verb->add_option("--url", args->url, "gateway to measure: HOST:PORT or unix:/PATH")
      ->type_name("");
  verb->add_option("--prompt", args->prompt_tokens, "tokens of the prompt [64]")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->type_name("");
  verb->add_option("--gen", args->generated_tokens, "tokens generated [128]")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 20))
      ->type_name("");
  verb->add_option("--concurrency", args->concurrency, "requests at once, such as 1,4 [1]")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1}, int64_t{256}))
      ->type_name("");
  verb->add_option("--repeat", args->repeats, "counted runs of each [3]")
      ->check(CLI::Range(int64_t{1}, int64_t{1000}))
      ->type_name("");
  args->serve.AddTo(*verb, {"grpc-listen", "alias", "max-queue", "drain-timeout"});
  verb->callback([args, &context] { context.status = Bench(*args, context); });
}

}  // namespace isotherm::cli
