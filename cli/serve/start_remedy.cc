#include "cli/serve/start_remedy.h"

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/ui/remedy.h"
#include "common/base/exit_code.h"

namespace isotherm::cli {

absl::Status WithStartRemedy(absl::Status status, const std::filesystem::path& model) {
  const std::string message(status.message());
  switch (ExitCodeOf(status)) {
    case ExitCode::kUsage:
      return WithTry(std::move(status), "isotherm serve --help");
    case ExitCode::kBadData:
      return WithTry(std::move(status), absl::StrCat("isotherm models verify ", model.string()));
    case ExitCode::kShortage:
      if (absl::StartsWith(message, "gateway:")) {
        return WithTry(std::move(status), "another address, such as --grpc-listen 127.0.0.1:0");
      }
      return WithTry(std::move(status), "free memory, or a smaller --context or --parallel");
    case ExitCode::kCannotFit:
      return WithTry(std::move(status), "a smaller model, or a smaller --context");
    default:
      return status;
  }
}

}  // namespace isotherm::cli
