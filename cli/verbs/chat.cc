#include <signal.h>
#include <unistd.h>

#include <memory>
#include <ostream>
#include <string>

#include "absl/strings/str_cat.h"
#include "cli/chat/chat_session.h"
#include "cli/chat/interruptible_client.h"
#include "cli/chat/line_reader.h"
#include "cli/serve/session.h"
#include "cli/service/grpc_inference_client.h"
#include "cli/ui/remedy.h"
#include "cli/verbs/generate_flags.h"
#include "cli/verbs/serve_flags.h"
#include "cli/verbs/verb.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"

namespace isotherm::cli {
namespace {

constexpr char kChatExamples[] = R"(Examples:
  isotherm chat smollm2-relu
  isotherm chat smollm2-relu --system "Answer in one sentence." --temperature 0.7

In the chat: /reset forgets the conversation, /stats shows figures, /exit (or Ctrl-D) ends. Ctrl-C
stops an answer, not the chat.)";

struct ChatArgs {
  std::string model;
  std::string url;
  std::string system;
  ServeFlags serve;
  GenerateFlags generate;
};

absl::Status Talk(ChatSession& chat, InterruptibleClient& client, Interrupts& interrupts,
                  Console& console) {
  const bool interactive = ::isatty(STDIN_FILENO) != 0;
  LineReader reader(STDIN_FILENO, interrupts);
  bool interrupted_before = false;
  while (true) {
    if (interactive) console.err << "> " << std::flush;
    const LineReader::Input input = reader.Next();
    if (input.signal == SIGINT && interactive && !interrupted_before) {
      interrupted_before = true;
      console.err << "\n";
      PrintNote(console, "/exit (or Ctrl-C again) ends the chat");
      continue;
    }
    if (input.signal != 0) return InterruptedError();
    if (!input.line.has_value()) break;
    interrupted_before = false;
    if (chat.HandleLine(*input.line) == ChatSession::Next::kExit) break;
    if (client.last_signal() == SIGTERM || client.last_signal() == SIGHUP) {
      return InterruptedError();
    }
  }
  if (interactive) console.err << "\n";
  // A script learns from the exit code that its last question failed; a person has read it.
  return interactive || chat.last_status().ok()
             ? absl::OkStatus()
             : WithExitCode(absl::UnavailableError("the last question was not answered"),
                            ExitCode::kUnavailable);
}

absl::Status Chat(const ChatArgs& args, VerbContext& context) {
  ISOTHERM_ASSIGN_OR_RETURN(const ServeOptions options, args.serve.Resolve(args.model));
  Interrupts interrupts;
  ISOTHERM_ASSIGN_OR_RETURN(
      const std::unique_ptr<Session> session,
      Session::Open(options, args.url, context.console, interrupts, MakeGrpcInferenceClient));
  ISOTHERM_ASSIGN_OR_RETURN(const ServedModel model, session->Model());
  if (!model.chat_template) {
    return WithTry(
        absl::InvalidArgumentError(absl::StrCat("the model ", model.name, " has no chat template")),
        "--chat-template chatml, or isotherm run --raw");
  }
  if (::isatty(STDIN_FILENO) != 0) {
    PrintNote(context.console, absl::StrCat("chatting with ", model.name, "; /help for commands"));
  }
  InterruptibleClient client(session->client(), interrupts);
  ChatSession chat(client, context.console, args.generate.Params(), args.system, context.json);
  return Talk(chat, client, interrupts, context.console);
}

}  // namespace

void AddChatVerb(CLI::App& app, VerbContext& context) {
  auto args = std::make_shared<ChatArgs>();
  CLI::App* verb = app.add_subcommand("chat", "Talks with a model.");
  verb->footer(kChatExamples);
  verb->add_option("MODEL", args->model, "model file, or a name in --model-dir")
      ->required()
      ->type_name("");
  verb->add_option("--url", args->url, "gateway to ask: HOST:PORT or unix:/PATH")->type_name("");
  verb->add_option("--system", args->system, "system message before the conversation")
      ->type_name("");
  args->generate.AddTo(*verb);
  args->serve.AddTo(*verb, {"grpc-listen", "alias", "max-queue", "drain-timeout"});
  verb->callback([args, &context] { context.status = Chat(*args, context); });
}

}  // namespace isotherm::cli
