#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

#include "gateway/scheduling/scheduler_thread.h"
#include "gateway/service/generate_reactor.h"
#include "gateway/text/model_slot.h"
#include "isotherm/v1/inference.grpc.pb.h"

namespace isotherm {

// The public API. Handlers decode, call, map the status; Generate is a reactor of its own.
// Everything it is given outlives the server.
class InferenceService : public v1::InferenceService::CallbackService {
 public:
  InferenceService(const GenerateLimits& limits, const ModelSlot& models,
                   SchedulerThread& scheduler, std::function<bool()> placement_connected);

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context,
                                  const v1::AbortRequest* request,
                                  v1::AbortResponse* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* ModelInfo(grpc::CallbackServerContext* context,
                                      const v1::ModelInfoRequest* request,
                                      v1::ModelInfoResponse* response) override;

  // Generate calls that gRPC is not done with: also of readers that are slow with a complete
  // answer.
  int64_t open_answers() const { return open_answers_.load(); }

 private:
  const GenerateLimits limits_;
  const ModelSlot& models_;
  SchedulerThread& scheduler_;
  const std::function<bool()> placement_connected_;
  std::atomic<int64_t> open_answers_{0};
};

}  // namespace isotherm
