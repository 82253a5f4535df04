#pragma once

#include "isotherm/v1/placement.grpc.pb.h"
#include "placement_service/plan/plan_publisher.h"

namespace isotherm {

// The gRPC face of a PlanPublisher, which outlives it. GetPlacement and History read the store on
// the calling thread (milliseconds); Rollback and SetBudget answer when the plan is live, so a call
// that ends first, by deadline or cancel, changes nothing about the operation: the same request_id
// asked again gets its answer.
class PlacementService final : public v1::PlacementService::CallbackService {
 public:
  explicit PlacementService(PlanPublisher& publisher) : publisher_(publisher) {}

  grpc::ServerUnaryReactor* GetPlacement(grpc::CallbackServerContext* context,
                                         const v1::GetPlacementRequest* request,
                                         v1::GetPlacementResponse* response) override;
  grpc::ServerWriteReactor<v1::WatchResponse>* Watch(grpc::CallbackServerContext* context,
                                                     const v1::WatchRequest* request) override;
  grpc::ServerUnaryReactor* History(grpc::CallbackServerContext* context,
                                    const v1::HistoryRequest* request,
                                    v1::HistoryResponse* response) override;
  grpc::ServerUnaryReactor* Rollback(grpc::CallbackServerContext* context,
                                     const v1::RollbackRequest* request,
                                     v1::RollbackResponse* response) override;
  grpc::ServerUnaryReactor* SetBudget(grpc::CallbackServerContext* context,
                                      const v1::SetBudgetRequest* request,
                                      v1::SetBudgetResponse* response) override;

 private:
  PlanPublisher& publisher_;
};

}  // namespace isotherm
