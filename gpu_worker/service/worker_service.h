#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>

#include "gpu_worker/engine/step_engine.h"
#include "gpu_worker/service/plan_executor.h"
#include "isotherm/v1/worker.grpc.pb.h"
#include "models/model_file.h"

namespace isotherm::gpu {

// What Describe and Prepare need once the model is loaded. Set once, by the server.
struct WorkerBackend {
  const ModelFile* model = nullptr;
  Device* device = nullptr;
  StepEngine* engine = nullptr;
  std::string instance_id;
};

// WorkerService of the gpu_worker. It answers from the start; until SetBackend() Describe tells the
// load progress and the streams end with UNAVAILABLE.
class WorkerService final : public v1::WorkerService::CallbackService {
 public:
  explicit WorkerService(std::string instance_id) : instance_id_(std::move(instance_id)) {}

  void SetProgress(double share) { progress_ = share; }
  void SetBackend(const WorkerBackend& backend);

  grpc::ServerUnaryReactor* Describe(grpc::CallbackServerContext* context,
                                     const v1::DescribeRequest* request,
                                     v1::DescribeResponse* response) override;
  grpc::ServerBidiReactor<v1::PrepareRequest, v1::PrepareResponse>* Prepare(
      grpc::CallbackServerContext* context) override;
  grpc::ServerBidiReactor<v1::ExecuteRequest, v1::ExecuteResponse>* Execute(
      grpc::CallbackServerContext* context) override;

  // The highest term seen; false when `term` is lower.
  bool AcceptTerm(int64_t term);

 private:
  const std::string instance_id_;
  std::atomic<double> progress_{0};
  std::atomic<bool> ready_{false};
  WorkerBackend backend_;
  std::mutex mu_;
  int64_t term_ = 0;
  std::unique_ptr<PlanExecutor> plans_;
};

}  // namespace isotherm::gpu
