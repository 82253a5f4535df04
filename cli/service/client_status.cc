#include "cli/service/client_status.h"

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/ui/remedy.h"
#include "common/base/error_reason.h"
#include "common/base/exit_code.h"
#include "common/rpc/status.h"

namespace isotherm::cli {

absl::Status ClientStatus(const grpc::Status& status, absl::string_view address) {
  if (status.ok()) return absl::OkStatus();
  const absl::Status from_server = rpc::FromGrpcStatus(status);
  // A reason comes from one of our services; without it the call never arrived.
  const bool unreachable = absl::IsUnavailable(from_server) && !ErrorReasonOf(from_server) &&
                           (absl::StrContains(status.error_message(), "connect") ||
                            absl::StrContains(status.error_message(), "DNS") ||
                            absl::StrContains(status.error_message(), "Socket"));
  if (!unreachable) return WithExitCode(from_server, ExitCode::kUnavailable);
  return WithTry(WithExitCode(absl::UnavailableError(absl::StrCat("nobody answers at ", address)),
                              ExitCode::kUnavailable),
                 "isotherm serve MODEL, or another --url");
}

void SetDeadline(grpc::ClientContext& context, std::chrono::milliseconds time_left) {
  context.set_deadline(std::chrono::system_clock::now() + time_left);
}

}  // namespace isotherm::cli
