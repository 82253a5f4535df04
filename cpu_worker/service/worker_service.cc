#include "cpu_worker/service/worker_service.h"

#include "absl/strings/str_cat.h"
#include "common/rpc/status.h"
#include "cpu_worker/service/execute_reactor.h"
#include "cpu_worker/service/prepare_reactor.h"

namespace isotherm::cpu {
namespace {

constexpr int32_t kProtocolVersion = 1;

void Fill(const CpuWorker::Description& description, v1::DescribeResponse* response) {
  response->set_kind(v1::WORKER_KIND_CPU);
  response->set_instance_id(description.instance_id);
  response->set_layout_hash(description.layout_hash);
  response->set_model_digest(description.model_digest);
  response->set_capacity_bytes(description.arena_bytes);
  response->set_isa(description.isa);
  response->set_threads(description.threads);
  response->set_numa_node(description.numa_node);
  response->mutable_epochs()->Assign(description.epochs.begin(), description.epochs.end());
  response->set_committed_epoch(description.committed_epoch);
  response->set_load_progress(description.load_progress);
  response->set_protocol_version(kProtocolVersion);
  response->set_device("cpu");
  response->set_num_layers(description.num_layers);
  response->set_num_neurons(description.num_neurons);
  response->set_bundle_bytes(description.bundle_bytes);
  response->set_bundle_rows(description.bundle_rows);
  response->set_huge_page_bytes(description.huge_page_bytes);
}

}  // namespace

grpc::ServerUnaryReactor* WorkerService::Describe(grpc::CallbackServerContext* context,
                                                  const v1::DescribeRequest* request,
                                                  v1::DescribeResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const int32_t version = request->protocol_version();
  if (version != 0 && version != kProtocolVersion) {
    reactor->Finish(rpc::ToGrpcStatus(absl::FailedPreconditionError(
        absl::StrCat("protocol version ", version, ", this cpu_worker speaks ", kProtocolVersion,
                     "; run one release on both sides"))));
    return reactor;
  }
  Fill(worker_.Describe(), response);
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerBidiReactor<v1::PrepareRequest, v1::PrepareResponse>* WorkerService::Prepare(
    grpc::CallbackServerContext*) {
  return new PrepareReactor(worker_);
}

grpc::ServerBidiReactor<v1::ExecuteRequest, v1::ExecuteResponse>* WorkerService::Execute(
    grpc::CallbackServerContext*) {
  return new ExecuteReactor(worker_);
}

}  // namespace isotherm::cpu
