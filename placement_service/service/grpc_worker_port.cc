#include "placement_service/service/grpc_worker_port.h"

#include <grpcpp/grpcpp.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/rpc/channel.h"
#include "common/rpc/status.h"
#include "common/rpc/step_convert.h"

namespace isotherm {
namespace {

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
  ISOTHERM_CHECK(!"unknown phase");
  __builtin_unreachable();
}

}  // namespace

GrpcWorkerPort::GrpcWorkerPort(std::string name, const std::string& address)
    : name_(std::move(name)), stub_(v1::WorkerService::NewStub(rpc::MakeChannel(address))) {}

bool GrpcWorkerPort::Enter(grpc::ClientContext* context) {
  std::lock_guard lock(mu_);
  if (cancelled_) return false;
  current_ = context;
  return true;
}

void GrpcWorkerPort::Leave() {
  std::lock_guard lock(mu_);
  current_ = nullptr;
}

void GrpcWorkerPort::Cancel() {
  std::lock_guard lock(mu_);
  cancelled_ = true;
  if (current_ != nullptr) current_->TryCancel();
}

absl::StatusOr<WorkerDescription> GrpcWorkerPort::Describe() {
  grpc::ClientContext context;
  if (!Enter(&context)) return absl::CancelledError("stopping");
  context.set_deadline(std::chrono::system_clock::now() + kDescribeDeadline);
  v1::DescribeRequest request;
  request.set_protocol_version(1);
  v1::DescribeResponse response;
  const grpc::Status status = stub_->Describe(&context, request, &response);
  Leave();
  if (!status.ok()) return rpc::FromGrpcStatus(status);
  return WorkerDescription{.instance_id = response.instance_id(),
                           .model_digest = response.model_digest(),
                           .layout_hash = response.layout_hash(),
                           .capacity_bytes = response.capacity_bytes(),
                           .epochs = {response.epochs().begin(), response.epochs().end()},
                           .committed_epoch = response.committed_epoch(),
                           .load_progress = response.load_progress(),
                           .num_layers = response.num_layers(),
                           .num_neurons = response.num_neurons(),
                           .bundle_bytes = response.bundle_bytes()};
}

absl::StatusOr<uint64_t> GrpcWorkerPort::Run(const PhaseRequest& phase) {
  grpc::ClientContext context;
  if (!Enter(&context)) return absl::CancelledError("stopping");
  // The worker reports five times a second; the whole phase may take as long as ten silent ones.
  context.set_deadline(std::chrono::system_clock::now() + 10 * phase.stall_timeout);
  v1::PrepareRequest request;
  request.set_op_id(absl::StrCat(phase.term, "-", phase.epoch, "-", static_cast<int>(phase.phase)));
  request.set_term(phase.term);
  request.set_phase(ToProto(phase.phase));
  request.set_epoch(phase.epoch);
  if (phase.plan != nullptr)
    *request.mutable_plan() = rpc::ToProto(*phase.plan, /*include_bitmaps=*/true);
  const auto stream = stub_->Prepare(&context);
  bool ready = false;
  uint64_t checksum = 0;
  if (stream->Write(request)) {
    v1::PrepareResponse response;
    while (!ready && stream->Read(&response)) {
      ready = response.ready();
      checksum = response.checksum();
    }
    stream->WritesDone();
  }
  const grpc::Status status = stream->Finish();
  Leave();
  if (ready) return checksum;
  if (status.ok()) return absl::UnavailableError(absl::StrCat("the ", name_, " closed the stream"));
  return rpc::FromGrpcStatus(status);
}

}  // namespace isotherm
