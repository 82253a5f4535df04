#include "common/process/flags.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "common/base/exit_code.h"

namespace isotherm {

absl::Status ParseFlags(CLI::App& app, int argc, char** argv, std::optional<int>* exit_code) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::ostringstream out, err;
    if (app.exit(error, out, err) != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(error.what(), "; try: ", app.get_name(), " --help"));
    }
    std::fputs(out.str().c_str(), stdout);
    *exit_code = static_cast<int>(ExitCode::kOk);
  }
  return absl::OkStatus();
}

}  // namespace isotherm
