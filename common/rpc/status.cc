#include "common/rpc/status.h"

#include "common/base/error_reason.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace isotherm::rpc {

grpc::Status ToGrpcStatus(const absl::Status& status, absl::string_view request_id) {
  if (status.ok()) return grpc::Status::OK;
  const auto code = static_cast<grpc::StatusCode>(status.code());  // the numbers are the same
  const std::string message(status.message());
  google::rpc::Status details;
  details.set_code(static_cast<int>(code));
  details.set_message(message);
  if (const auto reason = ErrorReasonOf(status); reason.has_value()) {
    google::rpc::ErrorInfo info;
    info.set_reason(reason->reason);
    info.set_domain("isotherm");
    details.add_details()->PackFrom(info);
    if (!reason->field.empty()) {
      google::rpc::BadRequest bad_request;
      auto* violation = bad_request.add_field_violations();
      violation->set_field(reason->field);
      violation->set_description(message);
      details.add_details()->PackFrom(bad_request);
    }
    if (reason->retry_after.has_value()) {
      google::rpc::RetryInfo retry;
      retry.mutable_retry_delay()->set_seconds(reason->retry_after->count() / 1000);
      retry.mutable_retry_delay()->set_nanos(
          static_cast<int32_t>(reason->retry_after->count() % 1000 * 1'000'000));
      details.add_details()->PackFrom(retry);
    }
  }
  if (!request_id.empty()) {
    google::rpc::RequestInfo info;
    info.set_request_id(std::string(request_id));
    details.add_details()->PackFrom(info);
  }
  return grpc::Status(code, message,
                      details.details_size() > 0 ? details.SerializeAsString() : std::string());
}

absl::Status FromGrpcStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status out(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  google::rpc::Status details;
  if (status.error_details().empty() || !details.ParseFromString(status.error_details()))
    return out;
  ErrorReason reason;
  for (const google::protobuf::Any& any : details.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::BadRequest bad_request;
    google::rpc::RetryInfo retry;
    if (any.UnpackTo(&info)) {
      reason.reason = info.reason();
    } else if (any.UnpackTo(&bad_request) && bad_request.field_violations_size() > 0) {
      reason.field = bad_request.field_violations(0).field();
    } else if (any.UnpackTo(&retry)) {
      reason.retry_after = std::chrono::milliseconds(retry.retry_delay().seconds() * 1000 +
                                                     retry.retry_delay().nanos() / 1'000'000);
    }
  }
  return reason.reason.empty() ? out : WithErrorReason(std::move(out), reason);
}

}  // namespace isotherm::rpc
