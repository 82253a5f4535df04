#pragma once

#include <chrono>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "common/telemetry/telemetry_sink.h"
#include "isotherm/v1/placement.grpc.pb.h"

namespace isotherm::rpc {

// Reports over one ReportTelemetry stream, opened again after it broke. A service that is away
// makes Send fail at once, one that stopped reading makes it wait, which only the caller's thread
// feels.
class GrpcTelemetrySink final : public TelemetrySink {
 public:
  explicit GrpcTelemetrySink(absl::string_view address);
  ~GrpcTelemetrySink() override;

  bool Send(const TelemetryReport& report) override;
  void Cancel() override;

 private:
  struct Stream;
  bool Open();
  void Close();

  std::unique_ptr<v1::PlacementService::Stub> stub_;
  std::unique_ptr<Stream> stream_;  // the sender's own, but for Cancel() under mu_
  absl::Mutex mu_;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace isotherm::rpc
