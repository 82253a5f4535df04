#include "tests/fakes/fake_prepare_server.h"

#include <atomic>

#include "common/base/check.h"
#include "common/rpc/status.h"
#include "common/rpc/step_convert.h"

namespace isotherm {
namespace {

class Reactor final : public grpc::ServerBidiReactor<v1::PrepareRequest, v1::PrepareResponse> {
 public:
  explicit Reactor(FakePrepareWorker& worker) : worker_(worker) { StartRead(&request_); }

  void OnReadDone(bool ok) override {
    if (!ok) return FinishOnce(grpc::Status::OK);
    PhaseRequest phase{.term = request_.term(), .epoch = request_.epoch()};
    const absl::StatusOr<PlacementPlan> plan = rpc::FromProto(request_.plan());
    if (!plan.ok()) return FinishOnce(rpc::ToGrpcStatus(plan.status()));
    switch (request_.phase()) {
      case v1::PREPARE_PHASE_PLAN:
        phase.phase = PreparePhase::kPlan;
        phase.plan = &*plan;
        phase.epoch = plan->epoch;
        break;
      case v1::PREPARE_PHASE_COMMIT:
        phase.phase = PreparePhase::kCommit;
        break;
      case v1::PREPARE_PHASE_ABORT:
        phase.phase = PreparePhase::kAbort;
        break;
      case v1::PREPARE_PHASE_RETIRE:
        phase.phase = PreparePhase::kRetire;
        break;
      default:
        return FinishOnce(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "phase"));
    }
    const absl::StatusOr<uint64_t> checksum = worker_.Run(phase);
    const bool waits = absl::IsDeadlineExceeded(checksum.status());
    if (!checksum.ok() && !waits) return FinishOnce(rpc::ToGrpcStatus(checksum.status()));
    response_.Clear();
    response_.set_op_id(request_.op_id());
    response_.set_phase(request_.phase());
    response_.set_epoch(phase.epoch);
    response_.set_ready(!waits);
    response_.set_checksum(waits ? 0 : *checksum);
    StartWrite(&response_);
  }
  void OnWriteDone(bool ok) override {
    if (!ok) return FinishOnce(grpc::Status::CANCELLED);
    StartRead(&request_);
  }
  void OnDone() override { delete this; }

 private:
  void FinishOnce(const grpc::Status& status) {
    if (!finished_.exchange(true)) Finish(status);
  }

  FakePrepareWorker& worker_;
  v1::PrepareRequest request_;
  v1::PrepareResponse response_;
  std::atomic<bool> finished_{false};
};

}  // namespace

FakePrepareServer::FakePrepareServer(FakePrepareWorker& worker, const std::string& listen)
    : worker_(worker) {
  auto server = rpc::Server::Start({.listen = listen}, {this});
  ISOTHERM_CHECK(server.ok());
  server_ = *std::move(server);
  server_->SetServing(true);
}

FakePrepareServer::~FakePrepareServer() { server_->Shutdown(std::chrono::milliseconds(0)); }

grpc::ServerUnaryReactor* FakePrepareServer::Describe(grpc::CallbackServerContext* context,
                                                      const v1::DescribeRequest*,
                                                      v1::DescribeResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::StatusOr<WorkerDescription> description = worker_.Describe();
  if (description.ok()) {
    response->set_kind(worker_.name() == "gpu_worker" ? v1::WORKER_KIND_GPU : v1::WORKER_KIND_CPU);
    response->set_instance_id(description->instance_id);
    response->set_layout_hash(description->layout_hash);
    response->set_model_digest(description->model_digest);
    response->set_capacity_bytes(description->capacity_bytes);
    for (const int64_t epoch : description->epochs) response->add_epochs(epoch);
    response->set_committed_epoch(description->committed_epoch);
    response->set_load_progress(description->load_progress);
    response->set_protocol_version(1);
    response->set_num_layers(description->num_layers);
    response->set_num_neurons(description->num_neurons);
    response->set_bundle_bytes(description->bundle_bytes);
    response->set_device(description->device);
    *response->mutable_memory() = rpc::ToProto(description->memory);
  }
  reactor->Finish(rpc::ToGrpcStatus(description.status()));
  return reactor;
}

grpc::ServerBidiReactor<v1::PrepareRequest, v1::PrepareResponse>* FakePrepareServer::Prepare(
    grpc::CallbackServerContext*) {
  return new Reactor(worker_);
}

}  // namespace isotherm
