#include "gpu_worker/service/worker_service.h"

#include <algorithm>

#include "common/rpc/status.h"
#include "common/rpc/step_convert.h"
#include "common/shm/arena_layout.h"
#include "gpu_worker/service/execute_reactor.h"
#include "gpu_worker/service/prepare_reactor.h"

namespace isotherm::gpu {
namespace {

constexpr int kProtocolVersion = 1;

template <typename Request, typename Response>
class RefusingReactor final : public grpc::ServerBidiReactor<Request, Response> {
 public:
  RefusingReactor() {
    this->Finish(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the model is loading"));
  }
  void OnDone() override { delete this; }
};

}  // namespace

void WorkerService::SetBackend(const WorkerBackend& backend) {
  backend_ = backend;
  plans_ = std::make_unique<PlanExecutor>();
  ready_.store(true, std::memory_order_release);
}

bool WorkerService::AcceptTerm(int64_t term) {
  std::lock_guard lock(mu_);
  if (term < term_) return false;
  term_ = term;
  return true;
}

grpc::ServerUnaryReactor* WorkerService::Describe(grpc::CallbackServerContext* context,
                                                  const v1::DescribeRequest*,
                                                  v1::DescribeResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  response->set_kind(v1::WORKER_KIND_GPU);
  response->set_instance_id(instance_id_);
  response->set_protocol_version(kProtocolVersion);
  response->set_numa_node(-1);
  // Whoever reads 1 finds everything below.
  const bool ready = ready_.load(std::memory_order_acquire);
  response->set_load_progress(ready ? 1.0 : std::min(progress_.load(), 0.99));
  if (ready) {
    const BundleLayout& layout = backend_.model->bundle_layout();
    const DeviceInfo info = backend_.device->Describe();
    response->set_layout_hash(layout.Hash());
    response->set_model_digest(backend_.model->config().digest);
    response->set_capacity_bytes(info.hot_capacity_bytes);
    response->set_free_bytes(info.hot_free_bytes);
    response->set_isa(info.isa);
    response->set_threads(info.threads);
    response->set_device(info.name);
    response->set_num_layers(layout.num_layers);
    response->set_num_neurons(layout.num_neurons);
    response->set_bundle_bytes(layout.bundle_bytes);
    response->set_bundle_rows(layout.rows);
    response->set_spare_bytes(info.hot_spare_bytes);
    *response->mutable_memory() = rpc::ToProto(info.memory);
    const WorkerHello hello = backend_.engine->Hello();
    for (const int64_t epoch : hello.epochs) response->add_epochs(epoch);
    response->set_committed_epoch(hello.epochs.empty() ? 0 : hello.epochs.back());
  }
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerBidiReactor<v1::PrepareRequest, v1::PrepareResponse>* WorkerService::Prepare(
    grpc::CallbackServerContext*) {
  if (!ready_.load(std::memory_order_acquire))
    return new RefusingReactor<v1::PrepareRequest, v1::PrepareResponse>();
  return new PrepareReactor(*this, *backend_.engine, *plans_, backend_.model->config().digest);
}

grpc::ServerBidiReactor<v1::ExecuteRequest, v1::ExecuteResponse>* WorkerService::Execute(
    grpc::CallbackServerContext*) {
  if (!ready_.load(std::memory_order_acquire))
    return new RefusingReactor<v1::ExecuteRequest, v1::ExecuteResponse>();
  return new ExecuteReactor(*backend_.engine);
}

}  // namespace isotherm::gpu
