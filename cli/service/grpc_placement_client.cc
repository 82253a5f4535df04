#include "cli/service/grpc_placement_client.h"

#include <algorithm>
#include <bit>
#include <string>

#include "cli/service/client_status.h"
#include "cli/service/placement_convert.h"
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

class GrpcPlacementClient final : public PlacementClient {
 public:
  explicit GrpcPlacementClient(absl::string_view address)
      : address_(address), stub_(v1::PlacementService::NewStub(rpc::MakeChannel(address))) {}

  absl::StatusOr<PlacementInfo> Show(int64_t epoch, bool which) override {
    v1::GetPlacementRequest request;
    request.set_epoch(epoch);
    request.set_include_bitmaps(which);
    v1::GetPlacementResponse response;
    ISOTHERM_RETURN_IF_ERROR(
        Call(&v1::PlacementService::Stub::GetPlacement, request, &response, kReadDeadline));
    return FromProto(response);
  }

  absl::StatusOr<std::vector<PlacementHistoryEntry>> History(int64_t count) override {
    std::vector<PlacementHistoryEntry> entries;
    v1::HistoryRequest request;
    do {
      const int64_t wanted = count - static_cast<int64_t>(entries.size());
      request.set_page_size(static_cast<int32_t>(std::min(wanted, kMaxPageSize)));
      v1::HistoryResponse response;
      ISOTHERM_RETURN_IF_ERROR(
          Call(&v1::PlacementService::Stub::History, request, &response, kReadDeadline));
      for (const v1::HistoryEntry& entry : response.entries()) entries.push_back(FromProto(entry));
      if (response.entries_size() == 0) break;
      request.set_page_token(response.next_page_token());
    } while (!request.page_token().empty() && static_cast<int64_t>(entries.size()) < count);
    return entries;
  }

  absl::StatusOr<PlacementInfo> Rollback(int64_t to_epoch) override {
    v1::RollbackRequest request;
    request.set_request_id(RandomId());
    request.set_to_epoch(to_epoch);
    v1::RollbackResponse response;
    ISOTHERM_RETURN_IF_ERROR(
        Call(&v1::PlacementService::Stub::Rollback, request, &response, kChangeDeadline));
    return FromProto(response.plan());
  }

  absl::StatusOr<BudgetChange> SetBudget(int64_t bytes) override {
    v1::SetBudgetRequest request;
    request.set_request_id(RandomId());
    request.set_bytes(bytes);
    v1::SetBudgetResponse response;
    ISOTHERM_RETURN_IF_ERROR(
        Call(&v1::PlacementService::Stub::SetBudget, request, &response, kChangeDeadline));
    return BudgetChange{FromProto(response.budget()), FromProto(response.plan())};
  }

  absl::StatusOr<PlacementInfo> SetPin(bool pinned) override {
    v1::SetPinRequest request;
    request.set_request_id(RandomId());
    request.set_pinned(pinned);
    v1::SetPinResponse response;
    ISOTHERM_RETURN_IF_ERROR(
        Call(&v1::PlacementService::Stub::SetPin, request, &response, kReadDeadline));
    PlacementInfo info = FromProto(response.plan());
    info.pinned = response.pinned();
    return info;
  }

  absl::StatusOr<RecomputationInfo> Recompute(const RecomputeRequest& wanted) override {
    v1::RecomputeRequest request;
    request.set_request_id(wanted.request_id);
    request.set_dry_run(wanted.dry_run);
    if (wanted.budget_bytes.has_value()) request.set_budget_bytes(*wanted.budget_bytes);
    request.set_time_limit_us(wanted.time_limit_us);
    request.set_if_etag(wanted.if_etag);
    v1::RecomputeResponse response;
    ISOTHERM_RETURN_IF_ERROR(
        Call(&v1::PlacementService::Stub::Recompute, request, &response, kReadDeadline));
    return FromProto(response.recomputation());
  }

  absl::StatusOr<RecomputationInfo> ImportPlan(const PlanImport& plan) override {
    v1::ImportPlanRequest request;
    request.set_request_id(plan.request_id);
    request.set_dry_run(plan.dry_run);
    request.set_source(plan.source);
    for (const std::vector<uint64_t>& hot : plan.hot) {
      v1::LayerPlacement* layer = request.add_layers();
      layer->set_gpu_bitmap(hot.data(), static_cast<size_t>((plan.num_neurons + 7) / 8));
      int64_t count = 0;
      for (const uint64_t word : hot) count += std::popcount(word);
      layer->set_gpu_neurons(count);
      layer->set_total_neurons(plan.num_neurons);
    }
    v1::ImportPlanResponse response;
    ISOTHERM_RETURN_IF_ERROR(
        Call(&v1::PlacementService::Stub::ImportPlan, request, &response, kReadDeadline));
    return FromProto(response.recomputation());
  }

  absl::StatusOr<ProfileInfo> GetProfile() override {
    v1::GetProfileResponse response;
    ISOTHERM_RETURN_IF_ERROR(Call(&v1::PlacementService::Stub::GetProfile, v1::GetProfileRequest(),
                                  &response, kReadDeadline));
    return FromProto(response);
  }

  absl::Status ImportProfile(const ProfileInfo& profile) override {
    v1::ImportProfileRequest request;
    request.set_request_id(RandomId());
    request.set_name(profile.name);
    request.set_tokens(profile.tokens);
    for (size_t l = 0; l < profile.predicted.size(); ++l) {
      v1::ProfileLayer* layer = request.add_layers();
      layer->mutable_predicted()->Add(profile.predicted[l].begin(), profile.predicted[l].end());
      if (l >= profile.fired.size()) continue;
      layer->mutable_fired()->Add(profile.fired[l].begin(), profile.fired[l].end());
    }
    v1::ImportProfileResponse response;
    return Call(&v1::PlacementService::Stub::ImportProfile, request, &response, kChangeDeadline);
  }

  absl::Status Watch(const std::function<bool(const PlacementEvent&)>& take) override {
    grpc::ClientContext context;
    const auto stream = stub_->Watch(&context, v1::WatchRequest());
    v1::WatchResponse event;
    bool enough = false;
    while (!enough && stream->Read(&event)) enough = !take(FromProto(event));
    if (enough) context.TryCancel();
    const grpc::Status status = stream->Finish();
    return enough ? absl::OkStatus() : ClientStatus(status, address_);
  }

 private:
  template <typename Request, typename Response>
  absl::Status Call(grpc::Status (v1::PlacementService::Stub::*method)(grpc::ClientContext*,
                                                                       const Request&, Response*),
                    const Request& request, Response* response,
                    std::chrono::milliseconds deadline) {
    grpc::ClientContext context;
    SetDeadline(context, deadline);
    return ClientStatus(((*stub_).*method)(&context, request, response), address_);
  }

  std::string address_;
  std::unique_ptr<v1::PlacementService::Stub> stub_;
};

}  // namespace

std::unique_ptr<PlacementClient> MakeGrpcPlacementClient(absl::string_view address) {
  return std::make_unique<GrpcPlacementClient>(address);
}

}  // namespace isotherm::cli
