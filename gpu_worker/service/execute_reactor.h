#pragma once

#include <memory>

#include "common/rpc/bidi_reactor.h"
#include "gpu_worker/engine/step_engine.h"
#include "isotherm/v1/worker.pb.h"

namespace isotherm::gpu {

// One gateway's Execute stream. Its end drops what the gateway had queued and its sequences.
class ExecuteReactor final : public rpc::BidiReactor<v1::ExecuteRequest, v1::ExecuteResponse> {
 public:
  explicit ExecuteReactor(StepEngine& engine);

 private:
  void OnMessage(const v1::ExecuteRequest& request) override;
  void OnClosed() override;

  StepEngine& engine_;
  int64_t connection_ = 0;
};

}  // namespace isotherm::gpu
