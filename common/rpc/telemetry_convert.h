#pragma once

#include "absl/status/statusor.h"
#include "common/telemetry/telemetry_report.h"
#include "isotherm/v1/placement.pb.h"

namespace isotherm::rpc {

v1::ReportTelemetryRequest ToProto(const TelemetryReport& report);
// InvalidArgument for negative numbers and lists that are neither empty nor num_neurons long; what
// the model's shape allows is the caller's to check.
absl::StatusOr<TelemetryReport> FromProto(const v1::ReportTelemetryRequest& request);

}  // namespace isotherm::rpc
