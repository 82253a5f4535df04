#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/support/status.h>

#include <chrono>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace isotherm::cli {

// The status of a call to `address`. Any failure ends a client verb with exit code 69; one that
// means "nobody answers there" says so with a remedy.
absl::Status ClientStatus(const grpc::Status& status, absl::string_view address);

void SetDeadline(grpc::ClientContext& context, std::chrono::milliseconds time_left);

}  // namespace isotherm::cli
