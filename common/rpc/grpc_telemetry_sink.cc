#include "common/rpc/grpc_telemetry_sink.h"

#include <grpcpp/grpcpp.h>

#include "common/rpc/channel.h"
#include "common/rpc/telemetry_convert.h"

namespace isotherm::rpc {

struct GrpcTelemetrySink::Stream {
  grpc::ClientContext context;
  v1::ReportTelemetryResponse response;
  std::unique_ptr<grpc::ClientWriter<v1::ReportTelemetryRequest>> writer;
};

GrpcTelemetrySink::GrpcTelemetrySink(absl::string_view address)
    : stub_(v1::PlacementService::NewStub(MakeChannel(address))) {}

GrpcTelemetrySink::~GrpcTelemetrySink() { Close(); }

void GrpcTelemetrySink::Cancel() {
  absl::MutexLock lock(&mu_);
  cancelled_ = true;
  if (stream_ != nullptr) stream_->context.TryCancel();
}

bool GrpcTelemetrySink::Open() {
  absl::MutexLock lock(&mu_);
  if (cancelled_) return false;
  stream_ = std::make_unique<Stream>();
  stream_->writer = stub_->ReportTelemetry(&stream_->context, &stream_->response);
  return true;
}

void GrpcTelemetrySink::Close() {
  if (stream_ == nullptr) return;
  stream_->context.TryCancel();
  (void)stream_->writer->Finish();
  absl::MutexLock lock(&mu_);
  stream_.reset();
}

bool GrpcTelemetrySink::Send(const TelemetryReport& report) {
  if (stream_ == nullptr && !Open()) return false;
  if (stream_->writer->Write(ToProto(report))) return true;
  Close();
  return false;
}

}  // namespace isotherm::rpc
