#pragma once

#include <grpcpp/support/server_callback.h>

#include <cstdint>

#include "isotherm/v1/placement.pb.h"
#include "placement_service/telemetry/traffic_model.h"

namespace isotherm {

// One worker's ReportTelemetry stream. A report that cannot be used is dropped and counted, and the
// stream goes on. Owns itself; `traffic` outlives it.
class TelemetryReactor final : public grpc::ServerReadReactor<v1::ReportTelemetryRequest> {
 public:
  TelemetryReactor(TrafficModel& traffic, v1::ReportTelemetryResponse* response);

  void OnReadDone(bool ok) override;
  void OnDone() override { delete this; }

 private:
  TrafficModel& traffic_;
  v1::ReportTelemetryResponse* const response_;
  v1::ReportTelemetryRequest request_;
  int64_t accepted_ = 0, dropped_ = 0;
};

}  // namespace isotherm
