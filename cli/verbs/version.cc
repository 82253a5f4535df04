#include "cli/version.h"

#include <nlohmann/json.hpp>
#include <ostream>

#include "cli/verbs/verb.h"

namespace isotherm::cli {

void AddVersionVerb(CLI::App& app, VerbContext& context) {
  CLI::App* verb = app.add_subcommand("version", "Prints the version.");
  verb->callback([&context] {
    if (context.json) {
      nlohmann::ordered_json json;
      json["version"] = kVersion;
      json["compiler"] = __VERSION__;
      context.console.out << json.dump() << "\n";
    } else {
      context.console.out << "isotherm " << kVersion << "\n";
    }
  });
}

}  // namespace isotherm::cli
