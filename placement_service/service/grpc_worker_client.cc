#include "placement_service/service/grpc_worker_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/rpc/channel.h"
#include "common/rpc/status.h"
#include "common/rpc/step_convert.h"

namespace isotherm {
namespace {

constexpr int32_t kProtocolVersion = 1;
constexpr std::chrono::seconds kDescribeDeadline{2};

v1::PreparePhase ToProto(PreparePhase phase) {
  switch (phase) {
    case PreparePhase::kPlan:
      return v1::PREPARE_PHASE_PLAN;
    case PreparePhase::kCommit:
      return v1::PREPARE_PHASE_COMMIT;
    case PreparePhase::kAbort:
      return v1::PREPARE_PHASE_ABORT;
    case PreparePhase::kRetire:
      return v1::PREPARE_PHASE_RETIRE;
  }
  return v1::PREPARE_PHASE_UNSPECIFIED;
}

WorkerDescription FromProto(const v1::DescribeResponse& response) {
  return {.instance_id = response.instance_id(),
          .model_digest = response.model_digest(),
          .layout_hash = response.layout_hash(),
          .capacity_bytes = response.capacity_bytes(),
          .epochs = {response.epochs().begin(), response.epochs().end()},
          .committed_epoch = response.committed_epoch(),
          .load_progress = response.load_progress(),
          .num_layers = response.num_layers(),
          .num_neurons = response.num_neurons(),
          .bundle_bytes = response.bundle_bytes(),
          // A worker of an older release tells neither.
          .bundle_rows = response.bundle_rows() > 0 ? response.bundle_rows() : 3,
          .spare_bytes = response.bundle_rows() > 0 ? response.spare_bytes() : -1,
          .device = response.device(),
          .memory = rpc::FromProto(response.memory())};
}

}  // namespace

// Operations on the stream are started one at a time and waited for on the queue with a deadline.
struct GrpcWorkerClient::Stream {
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  std::unique_ptr<grpc::ClientAsyncReaderWriter<v1::PrepareRequest, v1::PrepareResponse>> call;

  enum class Outcome { kOk, kFailed, kTimeout };
  Outcome Wait(std::chrono::milliseconds timeout) {
    void* tag = nullptr;
    bool ok = false;
    switch (queue.AsyncNext(&tag, &ok, std::chrono::system_clock::now() + timeout)) {
      case grpc::CompletionQueue::GOT_EVENT:
        return ok ? Outcome::kOk : Outcome::kFailed;
      case grpc::CompletionQueue::TIMEOUT:
        return Outcome::kTimeout;
      case grpc::CompletionQueue::SHUTDOWN:
        break;
    }
    return Outcome::kFailed;
  }
};

GrpcWorkerClient::GrpcWorkerClient(std::string name, absl::string_view address)
    : name_(std::move(name)), stub_(v1::WorkerService::NewStub(rpc::MakeChannel(address))) {}

GrpcWorkerClient::~GrpcWorkerClient() {
  if (stream_ != nullptr) Close(absl::OkStatus()).IgnoreError();
}

void GrpcWorkerClient::Cancel() {
  absl::MutexLock lock(&mu_);
  cancelled_ = true;
  if (running_ != nullptr) running_->TryCancel();
  if (stream_ != nullptr) stream_->context.TryCancel();
}

absl::StatusOr<WorkerDescription> GrpcWorkerClient::Describe() {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kDescribeDeadline);
  {
    absl::MutexLock lock(&mu_);
    if (cancelled_) return absl::CancelledError("stopping");
    running_ = &context;
  }
  v1::DescribeRequest request;
  request.set_protocol_version(kProtocolVersion);
  v1::DescribeResponse response;
  const grpc::Status status = stub_->Describe(&context, request, &response);
  {
    absl::MutexLock lock(&mu_);
    running_ = nullptr;
  }
  if (!status.ok()) return rpc::FromGrpcStatus(status);
  if (response.protocol_version() != kProtocolVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("speaks protocol version ", response.protocol_version(), ", this service ",
                     kProtocolVersion, "; run one release on both sides"));
  }
  if (stream_ != nullptr && response.instance_id() != instance_id_) {
    Close(absl::OkStatus()).IgnoreError();  // it led to the instance before
  }
  instance_id_ = response.instance_id();
  return FromProto(response);
}

absl::Status GrpcWorkerClient::Open(std::chrono::milliseconds timeout) {
  auto stream = std::make_unique<Stream>();
  Stream& opened = *stream;
  {
    absl::MutexLock lock(&mu_);
    if (cancelled_) return absl::CancelledError("stopping");
    stream_ = std::move(stream);
  }
  opened.call = stub_->AsyncPrepare(&opened.context, &opened.queue, &opened);
  switch (opened.Wait(timeout)) {
    case Stream::Outcome::kOk:
      return absl::OkStatus();
    case Stream::Outcome::kFailed:
      return Close(absl::UnavailableError("the stream did not open"));
    case Stream::Outcome::kTimeout:
      return Close(absl::DeadlineExceededError("no connection"));
  }
  return absl::OkStatus();
}

absl::Status GrpcWorkerClient::Close(const absl::Status& fallback) {
  Stream& stream = *stream_;
  // After a failed operation the peer's status is on its way; a slow peer is cut off.
  if (absl::IsDeadlineExceeded(fallback) || fallback.ok()) stream.context.TryCancel();
  grpc::Status status;
  if (stream.call != nullptr) stream.call->Finish(&status, &stream);
  stream.queue.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (stream.queue.Next(&tag, &ok)) {
  }
  {
    absl::MutexLock lock(&mu_);
    stream_.reset();
  }
  if (fallback.ok() || absl::IsDeadlineExceeded(fallback) || status.ok()) return fallback;
  return rpc::FromGrpcStatus(status);
}

absl::StatusOr<uint64_t> GrpcWorkerClient::Run(const PhaseRequest& request) {
  if (stream_ == nullptr) {
    const absl::Status opened = Open(request.stall_timeout);
    if (!opened.ok()) return opened;
  }
  Stream& stream = *stream_;
  v1::PrepareRequest message;
  message.set_op_id(absl::StrCat(request.term, "-", next_op_++));
  message.set_term(request.term);
  message.set_phase(ToProto(request.phase));
  message.set_epoch(request.epoch);
  if (request.phase == PreparePhase::kPlan) {
    ISOTHERM_CHECK(request.plan != nullptr);
    *message.mutable_plan() = rpc::ToProto(*request.plan, /*include_bitmaps=*/true);
  }
  const absl::Status slow =
      absl::DeadlineExceededError(absl::StrCat("no progress on epoch ", request.epoch));
  const absl::Status broken = absl::UnavailableError("the stream broke");
  stream.call->Write(message, &stream);
  Stream::Outcome outcome = stream.Wait(request.stall_timeout);
  // What counts against the timeout is silence; of a retire also waiting, which sends no bytes.
  int64_t best = -1;
  auto stalls_at = std::chrono::steady_clock::now() + request.stall_timeout;
  while (outcome == Stream::Outcome::kOk) {
    v1::PrepareResponse response;
    stream.call->Read(&response, &stream);
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        stalls_at - std::chrono::steady_clock::now());
    outcome = stream.Wait(std::max(left, std::chrono::milliseconds(0)));
    // The read writes to `response` until it is done, so a late one is waited for in Close().
    if (outcome == Stream::Outcome::kTimeout) return Close(slow);
    if (outcome == Stream::Outcome::kFailed) break;
    if (response.op_id() != message.op_id()) continue;
    if (request.progress) request.progress(response.bytes_done(), response.bytes_total());
    if (response.ready()) return response.checksum();
    if (response.bytes_done() > best) {
      best = response.bytes_done();
      stalls_at = std::chrono::steady_clock::now() + request.stall_timeout;
    }
    if (std::chrono::steady_clock::now() >= stalls_at) return Close(slow);
  }
  return Close(outcome == Stream::Outcome::kTimeout ? slow : broken);
}

}  // namespace isotherm
