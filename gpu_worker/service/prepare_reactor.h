#pragma once

#include "common/rpc/bidi_reactor.h"
#include "gpu_worker/engine/step_engine.h"
#include "gpu_worker/service/plan_executor.h"
#include "isotherm/v1/worker.pb.h"

namespace isotherm::gpu {

class WorkerService;

// One placement_service's Prepare stream: each phase runs on the plan thread and reports while it
// lasts, then once with `ready`. A phase that fails ends the stream with its status.
class PrepareReactor final : public rpc::BidiReactor<v1::PrepareRequest, v1::PrepareResponse> {
 public:
  PrepareReactor(WorkerService& service, StepEngine& engine, PlanExecutor& plans,
                 std::string model_digest);

 private:
  void OnMessage(const v1::PrepareRequest& request) override;
  void OnClosed() override {}

  WorkerService& service_;
  StepEngine& engine_;
  PlanExecutor& plans_;
  const std::string model_digest_;
};

}  // namespace isotherm::gpu
