#pragma once

#include "isotherm/v1/placement.grpc.pb.h"
#include "placement_service/plan/plan_publisher.h"

namespace isotherm {

// The gRPC face of a PlanPublisher and its TrafficModel, which outlive it. GetPlacement, History
// and GetProfile read on the calling thread (milliseconds); Rollback and SetBudget answer when the
// plan is live, so a call that ends first, by deadline or cancel, changes nothing about the
// operation: the same request_id asked again gets its answer.
class PlacementService final : public v1::PlacementService::CallbackService {
 public:
  explicit PlacementService(PlanPublisher& publisher) : publisher_(publisher) {}

  grpc::ServerReadReactor<v1::ReportTelemetryRequest>* ReportTelemetry(
      grpc::CallbackServerContext* context, v1::ReportTelemetryResponse* response) override;
  grpc::ServerUnaryReactor* GetPlacement(grpc::CallbackServerContext* context,
                                         const v1::GetPlacementRequest* request,
                                         v1::GetPlacementResponse* response) override;
  grpc::ServerUnaryReactor* Recompute(grpc::CallbackServerContext* context,
                                      const v1::RecomputeRequest* request,
                                      v1::RecomputeResponse* response) override;
  grpc::ServerWriteReactor<v1::WatchResponse>* Watch(grpc::CallbackServerContext* context,
                                                     const v1::WatchRequest* request) override;
  grpc::ServerUnaryReactor* History(grpc::CallbackServerContext* context,
                                    const v1::HistoryRequest* request,
                                    v1::HistoryResponse* response) override;
  grpc::ServerUnaryReactor* Rollback(grpc::CallbackServerContext* context,
                                     const v1::RollbackRequest* request,
                                     v1::RollbackResponse* response) override;
  grpc::ServerUnaryReactor* SetPin(grpc::CallbackServerContext* context,
                                   const v1::SetPinRequest* request,
                                   v1::SetPinResponse* response) override;
  grpc::ServerUnaryReactor* GetProfile(grpc::CallbackServerContext* context,
                                       const v1::GetProfileRequest* request,
                                       v1::GetProfileResponse* response) override;
  grpc::ServerUnaryReactor* ImportProfile(grpc::CallbackServerContext* context,
                                          const v1::ImportProfileRequest* request,
                                          v1::ImportProfileResponse* response) override;
  grpc::ServerUnaryReactor* ImportPlan(grpc::CallbackServerContext* context,
                                       const v1::ImportPlanRequest* request,
                                       v1::ImportPlanResponse* response) override;
  grpc::ServerUnaryReactor* SetBudget(grpc::CallbackServerContext* context,
                                      const v1::SetBudgetRequest* request,
                                      v1::SetBudgetResponse* response) override;

 private:
  PlanPublisher& publisher_;
};

}  // namespace isotherm
