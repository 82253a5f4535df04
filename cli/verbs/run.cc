#include <unistd.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/chat/answer_text.h"
#include "cli/chat/interruptible_client.h"
#include "cli/serve/session.h"
#include "cli/service/grpc_inference_client.h"
#include "cli/ui/remedy.h"
#include "cli/verbs/generate_flags.h"
#include "cli/verbs/serve_flags.h"
#include "cli/verbs/verb.h"
#include "common/base/status_macros.h"
#include "common/process/service_process.h"

namespace isotherm::cli {
namespace {

constexpr size_t kMaxPromptBytes = 4 << 20;
constexpr char kRunExamples[] = R"(Examples:
  isotherm run smollm2-relu "Why is the sky blue?"
  isotherm run smollm2-relu --temperature 0 --max-tokens 64 "Name three rivers."
  cat question.txt | isotherm run smollm2-relu -
  isotherm run smollm2-relu --raw "Once upon a time"

Uses the server that `isotherm serve` runs with this model, or the one at --url; otherwise starts
the four services for this one answer. The answer goes to stdout, all else to stderr.)";

struct RunArgs {
  std::string model;
  std::vector<std::string> prompt;
  std::string url;
  std::string system;
  bool raw = false;
  ServeFlags serve;
  GenerateFlags generate;
};

absl::StatusOr<std::string> ReadPrompt(const RunArgs& args) {
  std::string prompt = absl::StrJoin(args.prompt, " ");
  if (prompt == "-") {
    prompt.clear();
    char bytes[8192];
    while (prompt.size() <= kMaxPromptBytes) {
      const ssize_t got = ::read(STDIN_FILENO, bytes, sizeof(bytes));
      if (got <= 0) break;
      prompt.append(bytes, static_cast<size_t>(got));
    }
    if (!args.raw && !prompt.empty() && prompt.back() == '\n') prompt.pop_back();
  }
  if (prompt.size() > kMaxPromptBytes) {
    return absl::InvalidArgumentError("the prompt is larger than 4 MiB");
  }
  if (prompt.empty()) {
    return WithTry(absl::InvalidArgumentError("no prompt given"),
                   absl::StrCat("isotherm run ", args.model, " \"Why is the sky blue?\""));
  }
  return prompt;
}

absl::Status Run(const RunArgs& args, VerbContext& context) {
  ISOTHERM_ASSIGN_OR_RETURN(const ServeOptions options, args.serve.Resolve(args.model));
  ISOTHERM_ASSIGN_OR_RETURN(std::string prompt, ReadPrompt(args));
  Interrupts interrupts;
  ISOTHERM_ASSIGN_OR_RETURN(
      const std::unique_ptr<Session> session,
      Session::Open(options, args.url, context.console, interrupts, MakeGrpcInferenceClient));
  ISOTHERM_ASSIGN_OR_RETURN(const ServedModel model, session->Model());
  GenerateParams params = args.generate.Params();
  params.request_id = RandomId();
  if (args.raw || !model.chat_template) {
    if (!args.raw) {
      PrintNote(context.console, "the model has no chat template; the prompt is used as it is");
    }
    params.prompt = std::move(prompt);
  } else {
    if (!args.system.empty()) params.turns.push_back({"system", args.system});
    params.turns.push_back({"user", std::move(prompt)});
  }
  InterruptibleClient client(session->client(), interrupts);
  AnswerPrinter printer(context.console, /*silent=*/context.json);
  const absl::StatusOr<GenerateStats> stats = client.Generate(params, printer);
  printer.Finish();
  if (client.last_signal() != 0) return InterruptedError();
  ISOTHERM_RETURN_IF_ERROR(stats.status());
  if (context.json) {
    nlohmann::ordered_json json;
    json["model"] = model.name;
    json["text"] = printer.text();
    json["stats"] = nlohmann::ordered_json::parse(StatsJson(*stats));
    context.console.out << json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
                        << "\n";
  } else {
    PrintNote(context.console, StatsLine(*stats));
  }
  return absl::OkStatus();
}

}  // namespace

void AddRunVerb(CLI::App& app, VerbContext& context) {
  auto args = std::make_shared<RunArgs>();
  CLI::App* verb = app.add_subcommand("run", "Answers one prompt.");
  verb->footer(kRunExamples);
  verb->add_option("MODEL", args->model, "model file, or a name in --model-dir")
      ->required()
      ->type_name("");
  verb->add_option("PROMPT", args->prompt, "the question; - reads it from stdin")->type_name("");
  verb->add_option("--url", args->url, "gateway to ask: HOST:PORT or unix:/PATH")->type_name("");
  verb->add_option("--system", args->system, "system message before the question")->type_name("");
  verb->add_flag("--raw", args->raw, "the prompt as it is, without the chat template");
  args->generate.AddTo(*verb);
  args->serve.AddTo(*verb, {"grpc-listen", "alias", "max-queue", "drain-timeout"});
  verb->callback([args, &context] { context.status = Run(*args, context); });
}

}  // namespace isotherm::cli
