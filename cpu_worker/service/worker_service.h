#pragma once

#include "cpu_worker/engine/cpu_worker.h"
#include "isotherm/v1/worker.grpc.pb.h"

namespace isotherm::cpu {

// What gateway and placement_service call.
class WorkerService final : public v1::WorkerService::CallbackService {
 public:
  explicit WorkerService(CpuWorker& worker) : worker_(worker) {}

  grpc::ServerUnaryReactor* Describe(grpc::CallbackServerContext* context,
                                     const v1::DescribeRequest* request,
                                     v1::DescribeResponse* response) override;
  grpc::ServerBidiReactor<v1::PrepareRequest, v1::PrepareResponse>* Prepare(
      grpc::CallbackServerContext* context) override;
  grpc::ServerBidiReactor<v1::ExecuteRequest, v1::ExecuteResponse>* Execute(
      grpc::CallbackServerContext* context) override;

 private:
  CpuWorker& worker_;
};

}  // namespace isotherm::cpu
