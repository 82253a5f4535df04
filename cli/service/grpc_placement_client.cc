#include "cli/service/grpc_placement_client.h"

#include <algorithm>
#include <string>

#include "cli/service/client_status.h"
#include "common/base/status_macros.h"
#include "common/process/service_process.h"
#include "common/rpc/channel.h"
#include "isotherm/v1/placement.grpc.pb.h"

namespace isotherm::cli {
namespace {

constexpr std::chrono::seconds kReadDeadline{5};
// A change is live when the call returns: the workers have copied what moved.
constexpr std::chrono::seconds kChangeDeadline{120};
constexpr int64_t kMaxPageSize = 1000;

std::string CauseName(v1::PlacementCause cause) {
  switch (cause) {
    case v1::PLACEMENT_CAUSE_INITIAL:
      return "initial";
    case v1::PLACEMENT_CAUSE_BUDGET:
      return "budget";
    case v1::PLACEMENT_CAUSE_ROLLBACK:
      return "rollback";
    default:
      return "built in";
  }
}

std::string StateName(v1::PlanState state) {
  switch (state) {
    case v1::PLAN_STATE_PREPARING:
      return "preparing";
    case v1::PLAN_STATE_LIVE:
      return "live";
    case v1::PLAN_STATE_RETIRED:
      return "retired";
    case v1::PLAN_STATE_FAILED:
      return "failed";
    default:
      return "unknown";
  }
}

PlacementInfo FromProto(const v1::PlacementPlan& plan) {
  PlacementInfo info{.epoch = plan.epoch(),
                     .etag = plan.etag(),
                     .budget_bytes = plan.budget_bytes(),
                     .used_bytes = plan.used_bytes(),
                     .cause = CauseName(plan.cause()),
                     .created_unix_ms = plan.created_unix_ms(),
                     .profile = plan.profile(),
                     .solver = plan.solver(),
                     .objective = plan.objective(),
                     .from_epoch = plan.from_epoch()};
  for (const v1::LayerPlacement& layer : plan.layers()) {
    info.layers.push_back(
        {layer.gpu_neurons(), layer.total_neurons(), layer.predicted_hit_share()});
  }
  return info;
}

class GrpcPlacementClient final : public PlacementClient {
 public:
  explicit GrpcPlacementClient(absl::string_view address)
      : address_(address), stub_(v1::PlacementService::NewStub(rpc::MakeChannel(address))) {}

  absl::StatusOr<PlacementInfo> Show(int64_t epoch) override {
    grpc::ClientContext context;
    SetDeadline(context, kReadDeadline);
    v1::GetPlacementRequest request;
    request.set_epoch(epoch);
    v1::GetPlacementResponse response;
    ISOTHERM_RETURN_IF_ERROR(
        ClientStatus(stub_->GetPlacement(&context, request, &response), address_));
    return FromProto(response.plan());
  }

  absl::StatusOr<std::vector<PlacementHistoryEntry>> History(int64_t count) override {
    std::vector<PlacementHistoryEntry> entries;
    v1::HistoryRequest request;
    do {
      grpc::ClientContext context;
      SetDeadline(context, kReadDeadline);
      const int64_t wanted = count - static_cast<int64_t>(entries.size());
      request.set_page_size(static_cast<int32_t>(std::min(wanted, kMaxPageSize)));
      v1::HistoryResponse response;
      ISOTHERM_RETURN_IF_ERROR(
          ClientStatus(stub_->History(&context, request, &response), address_));
      for (const v1::HistoryEntry& entry : response.entries()) {
        entries.push_back({FromProto(entry.plan()), StateName(entry.state()), entry.moved_neurons(),
                           entry.message()});
      }
      if (response.entries_size() == 0) break;
      request.set_page_token(response.next_page_token());
    } while (!request.page_token().empty() && static_cast<int64_t>(entries.size()) < count);
    return entries;
  }

  absl::StatusOr<PlacementInfo> Rollback(int64_t to_epoch) override {
    grpc::ClientContext context;
    SetDeadline(context, kChangeDeadline);
    v1::RollbackRequest request;
    request.set_request_id(RandomId());
    request.set_to_epoch(to_epoch);
    v1::RollbackResponse response;
    ISOTHERM_RETURN_IF_ERROR(ClientStatus(stub_->Rollback(&context, request, &response), address_));
    return FromProto(response.plan());
  }

  absl::StatusOr<BudgetChange> SetBudget(int64_t bytes) override {
    grpc::ClientContext context;
    SetDeadline(context, kChangeDeadline);
    v1::SetBudgetRequest request;
    request.set_request_id(RandomId());
    request.set_bytes(bytes);
    v1::SetBudgetResponse response;
    ISOTHERM_RETURN_IF_ERROR(
        ClientStatus(stub_->SetBudget(&context, request, &response), address_));
    const v1::Budget& budget = response.budget();
    return BudgetChange{{budget.requested_bytes(), budget.effective_bytes(), budget.floor_bytes(),
                         budget.used_bytes()},
                        FromProto(response.plan())};
  }

 private:
  std::string address_;
  std::unique_ptr<v1::PlacementService::Stub> stub_;
};

}  // namespace

std::unique_ptr<PlacementClient> MakeGrpcPlacementClient(absl::string_view address) {
  return std::make_unique<GrpcPlacementClient>(address);
}

}  // namespace isotherm::cli
