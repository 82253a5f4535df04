#include "cli/app.h"

#include <CLI/CLI.hpp>
#include <exception>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/config/nearest_match.h"
#include "cli/ui/remedy.h"
#include "cli/verbs/verb.h"
#include "cli/version.h"
#include "common/base/exit_code.h"

namespace isotherm::cli {
namespace {

constexpr char kDescription[] =
    "Isotherm serves ReLU-sparse language models: often used neurons on the GPU side, the others "
    "on\n"
    "the CPU cores, each a service of its own.";
constexpr char kExamples[] = R"(Examples:
  isotherm models build smollm2-relu               make the shipped model
  isotherm run smollm2-relu "Why is the sky blue?"  ask once; starts what is missing
  isotherm chat smollm2-relu                        talk
  isotherm serve smollm2-relu                       keep the four services running

Each verb explains itself: isotherm VERB --help)";

// The innermost verb that was named on the command line.
const CLI::App* VerbOf(const CLI::App& app) {
  const CLI::App* verb = &app;
  while (!verb->get_subcommands().empty()) verb = verb->get_subcommands().front();
  return verb;
}

std::string FullName(const CLI::App& app, const CLI::App* verb) {
  std::string name;
  for (const CLI::App* at = verb; at != nullptr && at != &app; at = at->get_parent()) {
    name = absl::StrCat(" ", at->get_name(), name);
  }
  return absl::StrCat("isotherm", name);
}

std::vector<std::string> Flags(const CLI::App& verb) {
  std::vector<std::string> flags;
  for (const CLI::Option* option : verb.get_options()) {
    for (const std::string& name : option->get_lnames()) flags.push_back(absl::StrCat("--", name));
  }
  return flags;
}

std::vector<std::string> Verbs(const CLI::App& app) {
  std::vector<std::string> verbs;
  for (const CLI::App* verb : app.get_subcommands(nullptr)) verbs.push_back(verb->get_name());
  return verbs;
}

// What was wrong with the command line, with the nearest flag or verb.
absl::Status UsageError(const CLI::App& app, const CLI::ParseError& error,
                        const std::vector<std::string>& words) {
  const CLI::App* verb = VerbOf(app);
  const std::string name = FullName(app, verb);
  std::string message = error.what();
  std::string remedy = absl::StrCat(name, " --help");
  const std::vector<std::string> extras =
      verb->remaining(true).empty() ? app.remaining(true) : verb->remaining(true);
  if (!extras.empty()) {
    const std::string unknown = extras.front().substr(0, extras.front().find('='));
    const bool flag = absl::StartsWith(unknown, "-");
    message = absl::StrCat(flag ? "unknown flag '" : "unexpected '", unknown, "'");
    const std::string nearest = NearestMatch(unknown, flag ? Flags(*verb) : Verbs(*verb));
    if (!nearest.empty()) remedy = absl::StrCat(name, " ", nearest);
  } else if (verb == &app && !words.empty()) {
    message = absl::StrCat("a verb is wanted, got '", words.front(), "'");
  }
  return WithTry(WithExitCode(absl::InvalidArgumentError(message), ExitCode::kUsage), remedy);
}

}  // namespace

int RunApp(int argc, const char* const* argv, Console& console) {
  VerbContext context{.console = console};
  CLI::App app(kDescription, "isotherm");
  app.footer(kExamples);
  app.require_subcommand(0, 1);
  app.fallthrough();
  app.set_version_flag("--version", absl::StrCat("isotherm ", kVersion));
  app.add_flag("--json", context.json, "data on stdout as JSON");
  AddServeVerb(app, context);
  AddRunVerb(app, context);
  AddChatVerb(app, context);
  AddBenchVerb(app, context);
  AddModelsVerb(app, context);
  AddPlacementVerb(app, context);
  AddRecomputeVerb(app, context);
  AddHealthVerb(app, context);
  AddVersionVerb(app, context);

  const std::vector<std::string> words(argv + 1, argv + argc);
  try {  // CLI11 reports by exceptions, --help too; none leaves this function
    app.parse(argc, argv);
    if (app.get_subcommands().empty()) {
      console.err << app.help() << std::flush;
      return static_cast<int>(ExitCode::kUsage);
    }
  } catch (const CLI::Success& help) {
    return app.exit(help, console.out, console.err);
  } catch (const CLI::ParseError& error) {
    context.status = UsageError(app, error, words);
  } catch (const std::exception& error) {
    context.status = absl::InternalError(error.what());
  }
  console.out.flush();
  if (!context.status.ok()) PrintError(console, context.status);
  return static_cast<int>(ExitCodeOf(context.status));
}

}  // namespace isotherm::cli
