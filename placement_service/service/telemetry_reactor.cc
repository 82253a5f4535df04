#include "placement_service/service/telemetry_reactor.h"

#include <string>

#include "common/process/log.h"
#include "common/rpc/telemetry_convert.h"

namespace isotherm {

TelemetryReactor::TelemetryReactor(TrafficModel& traffic, v1::ReportTelemetryResponse* response)
    : traffic_(traffic), response_(response) {
  StartRead(&request_);
}

void TelemetryReactor::OnReadDone(bool ok) {
  if (!ok) {
    response_->set_accepted(accepted_);
    response_->set_dropped(dropped_);
    Finish(grpc::Status::OK);
    return;
  }
  const absl::StatusOr<TelemetryReport> report = rpc::FromProto(request_);
  const absl::Status status = report.ok() ? traffic_.Accept(*report) : report.status();
  if (status.ok()) {
    ++accepted_;
  } else if (dropped_++ == 0) {  // a worker that is wrong once is wrong again
    // Of a worker that this service has not met yet: the next ones count.
    Log(absl::IsNotFound(status) ? LogLevel::kInfo : LogLevel::kWarning,
        "a telemetry report was dropped: {}", std::string(status.message()));
  }
  StartRead(&request_);
}

}  // namespace isotherm
