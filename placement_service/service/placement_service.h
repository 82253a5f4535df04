#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "isotherm/v1/placement.grpc.pb.h"
#include "placement_service/plan/plan_publisher.h"

namespace isotherm {

// PlacementService: reads come from the store, changes wait for the publisher on the service's own
// thread
// ("operations"), so no RPC thread blocks.
class PlacementServiceImpl final : public v1::PlacementService::CallbackService {
 public:
  PlacementServiceImpl(PlanStore& store, PlanPublisher& publisher);
  ~PlacementServiceImpl() override;

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
  grpc::ServerUnaryReactor* Later(grpc::CallbackServerContext* context,
                                  std::function<absl::Status()> operation);
  void Loop();

  PlanStore& store_;
  PlanPublisher& publisher_;
  std::mutex mu_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> operations_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace isotherm
