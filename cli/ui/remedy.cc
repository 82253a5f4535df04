#include "cli/ui/remedy.h"

#include "absl/strings/cord.h"

namespace isotherm::cli {
namespace {
constexpr char kPayloadUrl[] = "isotherm/try";
}  // namespace

absl::Status WithTry(absl::Status status, absl::string_view remedy) {
  if (!status.ok() && !status.GetPayload(kPayloadUrl).has_value()) {
    status.SetPayload(kPayloadUrl, absl::Cord(remedy));
  }
  return status;
}

std::string TryOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kPayloadUrl);
  return payload.has_value() ? std::string(*payload) : std::string();
}

}  // namespace isotherm::cli
