#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace isotherm {

// Machine-readable part of an error that a client may see: reason as in google.rpc.ErrorInfo
// (INVALID_VALUE, CONTEXT_LENGTH_EXCEEDED, MODEL_NOT_FOUND, QUEUE_FULL, MODEL_LOADING, DRAINING,
// NO_WORKER, INTERNAL, ...), the field at fault, and when to try again.
struct ErrorReason {
  std::string reason;
  std::string field;
  std::optional<std::chrono::milliseconds> retry_after;
};

absl::Status WithErrorReason(absl::Status status, const ErrorReason& reason);
std::optional<ErrorReason> ErrorReasonOf(const absl::Status& status);

}  // namespace isotherm
