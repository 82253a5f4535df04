#pragma once

#include <CLI/CLI.hpp>

#include "absl/status/status.h"
#include "cli/ui/console.h"

namespace isotherm::cli {

// What a verb's callback gets and leaves behind. CLI11 runs the callback of the verb given.
struct VerbContext {
  Console& console;
  bool json = false;    // --json
  absl::Status status;  // the verb's result: its exit code is the program's
};

// Each adds its verb, with flags, help and examples, to the command.
void AddServeVerb(CLI::App& app, VerbContext& context);
void AddRunVerb(CLI::App& app, VerbContext& context);
void AddChatVerb(CLI::App& app, VerbContext& context);
void AddBenchVerb(CLI::App& app, VerbContext& context);
void AddModelsVerb(CLI::App& app, VerbContext& context);
void AddPlacementVerb(CLI::App& app, VerbContext& context);
void AddRecomputeVerb(CLI::App& app, VerbContext& context);
void AddHealthVerb(CLI::App& app, VerbContext& context);
void AddVersionVerb(CLI::App& app, VerbContext& context);

}  // namespace isotherm::cli
