#include "cpu_worker/service/cpu_worker_service.h"

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/rpc/status.h"
#include "cpu_worker/service/compute_layer_reactor.h"

namespace isotherm::cpu {

absl::Status CpuWorkerService::Open(const v1::OpenArenaRequest& request,
                                    v1::OpenArenaResponse* response) {
  ISOTHERM_ASSIGN_OR_RETURN(CpuWorker::Parts * parts, worker_.parts());
  const CpuWorker::Description ours = worker_.Describe();
  if (request.model_digest() != ours.model_digest) {
    return absl::FailedPreconditionError(
        absl::StrCat("the gpu_worker loaded model ", request.model_digest(), ", this worker ",
                     ours.model_digest, "; start both with one --model and equal options"));
  }
  ISOTHERM_ASSIGN_OR_RETURN(
      const shm::ArenaOffer offer,
      parts->attachments->Open(request.peer_instance_id(), request.layout_hash(),
                               request.max_rows(), request.device_rings()));
  response->set_instance_id(ours.instance_id);
  response->set_nonce_high(offer.nonce.high);
  response->set_nonce_low(offer.nonce.low);
  response->set_handoff_token(offer.handoff_token);
  response->set_socket_path(offer.socket_path);
  response->set_arena_bytes(offer.arena_bytes);
  response->set_arena_is_model_file(offer.arena_is_model_file);
  response->set_control_bytes(offer.control_bytes);
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* CpuWorkerService::OpenArena(grpc::CallbackServerContext* context,
                                                      const v1::OpenArenaRequest* request,
                                                      v1::OpenArenaResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(rpc::ToGrpcStatus(Open(*request, response)));
  return reactor;
}

grpc::ServerUnaryReactor* CpuWorkerService::CloseArena(grpc::CallbackServerContext* context,
                                                       const v1::CloseArenaRequest* request,
                                                       v1::CloseArenaResponse*) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::StatusOr<CpuWorker::Parts*> parts = worker_.parts();
  reactor->Finish(rpc::ToGrpcStatus(
      parts.ok() ? (*parts)->attachments->Close({request->nonce_high(), request->nonce_low()})
                 : parts.status()));
  return reactor;
}

grpc::ServerBidiReactor<v1::ComputeLayerRequest, v1::ComputeLayerResponse>*
CpuWorkerService::ComputeLayer(grpc::CallbackServerContext*) {
  return new ComputeLayerReactor(worker_, queue_);
}

}  // namespace isotherm::cpu
