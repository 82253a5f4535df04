#include <filesystem>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "cli/bench/bench_runner.h"
#include "cli/bench/program_source.h"
#include "cli/config/paths.h"
#include "cli/serve/session.h"
#include "cli/service/grpc_inference_client.h"
#include "cli/ui/remedy.h"
#include "cli/verbs/serve_flags.h"
#include "cli/verbs/verb.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"

namespace isotherm::cli {
namespace {

constexpr char kBenchExamples[] = R"(Examples:
  isotherm bench smollm2-relu
  isotherm bench smollm2-relu --prompt 64 --gen 128 --concurrency 1,4 --repeat 5
  isotherm bench smollm2-relu --json > result.json
  isotherm bench smollm2-relu --compare "PYTHON bench/e2e/llama_baseline.py --model base.gguf"

Measures prompts of --prompt tokens with --gen generated tokens, in turn with predicted and with all
neurons, and beside them the whole model in one process. Uses the running server, the one at --url,
or starts the four services for the while.)";

constexpr char kSplitPredictor[] = "four processes, predictor";
constexpr char kSplitExact[] = "four processes, all neurons";
constexpr char kOnePredictor[] = "one process, predictor";
constexpr char kOneExact[] = "one process, all neurons";

struct BenchArgs {
  std::string model;
  std::string url;
  int64_t prompt_tokens = 64;
  int64_t generated_tokens = 128;
  std::vector<int64_t> concurrency = {1};
  int64_t repeats = 3;
  bool one_process = true;
  std::vector<std::string> compare;  // command lines
  ServeFlags serve;
};

absl::StatusOr<std::shared_ptr<BenchProgram>> StartLocal(const BenchArgs& args,
                                                         const ServeOptions& options) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::filesystem::path model,
                            ResolveModel(args.model, options.model_dir));
  absl::StatusOr<std::shared_ptr<BenchProgram>> program =
      BenchProgram::Start({(ProgramDir() / "isotherm-bench-local").string(), "--model",
                           model.string(), "--threads", absl::StrCat(options.threads)});
  if (!program.ok()) return WithTry(program.status(), "--no-one-process");
  return program;
}

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

  // The programs that measure something else are loaded before anything runs, and idle between
  // their turns.
  std::shared_ptr<BenchProgram> local;
  if (args.one_process) {
    ISOTHERM_ASSIGN_OR_RETURN(local, StartLocal(args, options));
  }
  std::vector<std::unique_ptr<BenchSource>> sources;
  if (model.sparse) {
    sources.push_back(MakeServerSource(client, kSplitPredictor, /*exact=*/false));
  }
  sources.push_back(MakeServerSource(client, kSplitExact, /*exact=*/true));
  if (local != nullptr) {
    if (model.sparse) sources.push_back(MakeProgramSource(local, kOnePredictor, /*exact=*/false));
    sources.push_back(MakeProgramSource(local, kOneExact, /*exact=*/true));
  }
  for (const std::string& command : args.compare) {
    ISOTHERM_ASSIGN_OR_RETURN(std::shared_ptr<BenchProgram> program,
                              BenchProgram::Start(absl::StrSplit(command, ' ', absl::SkipEmpty())));
    const std::string name = program->name();
    sources.push_back(MakeProgramSource(std::move(program), name, /*exact=*/false));
  }

  std::vector<double> read_rates;  // one before each round of all sources
  absl::Status read_status;
  const auto round = static_cast<int64_t>(sources.size());
  absl::StatusOr<std::vector<BenchRow>> rows =
      RunBench(plan, sources, [&](int64_t done, int64_t total) {
        if (local != nullptr && done % round == 0) {
          const absl::StatusOr<double> rate = local->ReadRate();
          read_status.Update(rate.status());
          if (rate.ok()) read_rates.push_back(*rate);
        }
        if (context.console.err_is_terminal) {
          context.console.err << "\rrun " << done << " of " << total << "\033[K" << std::flush;
          if (done == total) context.console.err << "\r\033[K" << std::flush;
        }
        return interrupts.Take() == 0;
      });
  if (absl::IsCancelled(rows.status())) return InterruptedError();
  ISOTHERM_RETURN_IF_ERROR(rows.status());
  ISOTHERM_RETURN_IF_ERROR(read_status);
  const Spread read = SpreadOf(read_rates);
  CompleteRows({{kSplitPredictor, kOnePredictor}, {kSplitExact, kOneExact}}, read.median, *rows);
  if (context.json) {
    context.console.out << BenchJson(*rows, args.prompt_tokens, args.generated_tokens, read);
  } else {
    context.console.out << model.name << ", " << args.prompt_tokens << " prompt tokens, "
                        << args.generated_tokens << " generated, " << args.repeats << " repeats\n"
                        << BenchTable(*rows) << LayerTable(*rows);
    if (read.median > 0) {
      context.console.out << absl::StrFormat(
          "limit: linear read of %.1f (%.1f - %.1f) GB/s, measured between the runs\n",
          read.median / 1e9, read.low / 1e9, read.high / 1e9);
    }
  }
  return absl::OkStatus();
}

}  // namespace

void AddBenchVerb(CLI::App& app, VerbContext& context) {
  auto args = std::make_shared<BenchArgs>();
  CLI::App* verb = app.add_subcommand("bench", "Measures speed: first token, tokens/s, hit share.");
  verb->footer(kBenchExamples);
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
  verb->add_flag("!--no-one-process", args->one_process,
                 "leave out the whole model in one process, and the memory's limit");
  verb->add_option("--compare", args->compare,
                   "command that measures another engine by the protocol of isotherm-bench-local")
      ->type_name("COMMAND");
  args->serve.AddTo(*verb, {"grpc-listen", "alias", "max-queue", "drain-timeout"});
  verb->callback([args, &context] { context.status = Bench(*args, context); });
}

}  // namespace isotherm::cli
