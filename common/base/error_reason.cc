#include "common/base/error_reason.h"

#include <string>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace isotherm {
namespace {
constexpr char kErrorReasonUrl[] = "isotherm/error-reason";
}  // namespace

absl::Status WithErrorReason(absl::Status status, const ErrorReason& reason) {
  if (!status.ok()) {
    const int64_t retry_ms = reason.retry_after.has_value() ? reason.retry_after->count() : -1;
    status.SetPayload(kErrorReasonUrl,
                      absl::Cord(absl::StrCat(reason.reason, "\n", reason.field, "\n", retry_ms)));
  }
  return status;
}

std::optional<ErrorReason> ErrorReasonOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kErrorReasonUrl);
  if (!payload.has_value()) return std::nullopt;
  const std::string text(*payload);
  const std::vector<std::string> parts = absl::StrSplit(text, '\n');
  int64_t retry_ms = -1;
  if (parts.size() != 3 || !absl::SimpleAtoi(parts[2], &retry_ms)) return std::nullopt;
  ErrorReason reason{.reason = parts[0], .field = parts[1]};
  if (retry_ms >= 0) reason.retry_after = std::chrono::milliseconds(retry_ms);
  return reason;
}

}  // namespace isotherm
