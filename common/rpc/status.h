#pragma once

#include <grpcpp/support/status.h>

#include <chrono>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace isotherm::rpc {

// What google.rpc.ErrorInfo, BadRequest and RetryInfo carry; attached to an absl::Status by the
// domain with WithErrorReason() (common/base/error_reason.h) and put on the wire here.
//
// The only place that knows both status types.
grpc::Status ToGrpcStatus(const absl::Status& status, absl::string_view request_id = {});
absl::Status FromGrpcStatus(const grpc::Status& status);

}  // namespace isotherm::rpc
