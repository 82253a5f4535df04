#pragma once

#include "cpu_worker/engine/cpu_worker.h"
#include "cpu_worker/service/compute_queue.h"
#include "isotherm/v1/cpu_worker.grpc.pb.h"

namespace isotherm::cpu {

// What the gpu_worker calls.
class CpuWorkerService final : public v1::CpuWorkerService::CallbackService {
 public:
  explicit CpuWorkerService(CpuWorker& worker) : worker_(worker) {}

  grpc::ServerUnaryReactor* OpenArena(grpc::CallbackServerContext* context,
                                      const v1::OpenArenaRequest* request,
                                      v1::OpenArenaResponse* response) override;
  grpc::ServerUnaryReactor* CloseArena(grpc::CallbackServerContext* context,
                                       const v1::CloseArenaRequest* request,
                                       v1::CloseArenaResponse* response) override;
  grpc::ServerBidiReactor<v1::ComputeLayerRequest, v1::ComputeLayerResponse>* ComputeLayer(
      grpc::CallbackServerContext* context) override;

 private:
  absl::Status Open(const v1::OpenArenaRequest& request, v1::OpenArenaResponse* response);

  CpuWorker& worker_;
  ComputeQueue queue_;
};

}  // namespace isotherm::cpu
