#include "placement_service/service/placement_service.h"

#include <chrono>
#include <limits>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/rpc/status.h"
#include "common/rpc/step_convert.h"
#include "placement_service/service/plan_convert.h"
#include "placement_service/service/telemetry_reactor.h"
#include "placement_service/service/watch_reactor.h"

namespace isotherm {
namespace {

constexpr int32_t kMaxPageSize = 1000;
constexpr int32_t kDefaultPageSize = 50;

grpc::ServerUnaryReactor* Finish(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(rpc::ToGrpcStatus(status));
  return reactor;
}

absl::Status Invalid(absl::string_view field, absl::string_view what) {
  return WithErrorReason(absl::InvalidArgumentError(absl::StrCat(field, " ", what)),
                         {.reason = "INVALID_VALUE", .field = std::string(field)});
}

}  // namespace

grpc::ServerReadReactor<v1::ReportTelemetryRequest>* PlacementService::ReportTelemetry(
    grpc::CallbackServerContext*, v1::ReportTelemetryResponse* response) {
  return new TelemetryReactor(publisher_.traffic(), response);
}

grpc::ServerUnaryReactor* PlacementService::GetPlacement(grpc::CallbackServerContext* context,
                                                         const v1::GetPlacementRequest* request,
                                                         v1::GetPlacementResponse* response) {
  if (request->epoch() < 0) {
    return Finish(context, Invalid("epoch", "is negative; 0 is the live plan"));
  }
  const absl::StatusOr<PlanRecord> record =
      publisher_.Get(request->epoch(), request->include_bitmaps());
  if (record.ok()) {
    *response->mutable_plan() = rpc::ToProto(record->plan, request->include_bitmaps());
    response->set_pinned(publisher_.pinned());
    response->set_status(publisher_.status());
    const std::optional<WorkerMemory> memory = publisher_.Memory();
    if (request->epoch() == 0 && memory.has_value()) {
      response->set_device(memory->device);
      *response->mutable_memory() = rpc::ToProto(memory->use);
    }
    const Measurement measured = publisher_.traffic().Measured();
    if (measured.tokens > 0 && measured.epoch == record->plan.epoch) {
      for (const Measurement::Layer& layer : measured.layers) {
        *response->add_measured() = ToProto(layer);
      }
      response->set_measured_hit_share(measured.hit_share);
      response->set_measured_tokens(static_cast<int64_t>(measured.tokens));
    }
  }
  return Finish(context, record.status());
}

grpc::ServerUnaryReactor* PlacementService::Recompute(grpc::CallbackServerContext* context,
                                                      const v1::RecomputeRequest* request,
                                                      v1::RecomputeResponse* response) {
  RecomputeParams params{.request_id = request->request_id(),
                         .dry_run = request->dry_run(),
                         .time_limit = std::chrono::microseconds(request->time_limit_us()),
                         .if_etag = request->if_etag()};
  if (request->has_budget_bytes()) params.budget_bytes = request->budget_bytes();
  const absl::StatusOr<RecomputationRecord> record = publisher_.Recompute(std::move(params));
  if (record.ok()) *response->mutable_recomputation() = ToProto(*record);
  return Finish(context, record.status());
}

grpc::ServerUnaryReactor* PlacementService::ImportPlan(grpc::CallbackServerContext* context,
                                                       const v1::ImportPlanRequest* request,
                                                       v1::ImportPlanResponse* response) {
  absl::StatusOr<ImportPlanParams> params = FromProto(*request);
  if (!params.ok()) return Finish(context, params.status());
  const absl::StatusOr<RecomputationRecord> record = publisher_.ImportPlan(*std::move(params));
  if (record.ok()) *response->mutable_recomputation() = ToProto(*record);
  return Finish(context, record.status());
}

grpc::ServerUnaryReactor* PlacementService::GetProfile(grpc::CallbackServerContext* context,
                                                       const v1::GetProfileRequest*,
                                                       v1::GetProfileResponse* response) {
  const StoredProfile profile = publisher_.traffic().Snapshot();
  if (profile.layers.empty()) {
    return Finish(
        context,
        WithErrorReason(absl::UnavailableError("no worker has told its model yet; ask again"),
                        {.reason = "NO_WORKER", .retry_after = std::chrono::milliseconds(1'000)}));
  }
  *response = ToProto(profile);
  return Finish(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* PlacementService::ImportProfile(grpc::CallbackServerContext* context,
                                                          const v1::ImportProfileRequest* request,
                                                          v1::ImportProfileResponse*) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  publisher_.ImportProfile(FromProto(*request),
                           [reactor](const absl::StatusOr<PlanRecord>& record) {
                             reactor->Finish(rpc::ToGrpcStatus(record.status()));
                           });
  return reactor;
}

grpc::ServerUnaryReactor* PlacementService::SetPin(grpc::CallbackServerContext* context,
                                                   const v1::SetPinRequest* request,
                                                   v1::SetPinResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  publisher_.SetPin({.request_id = request->request_id(),
                     .pinned = request->pinned(),
                     .if_etag = request->if_etag()},
                    [this, reactor, response](const absl::StatusOr<PlanRecord>& record) {
                      if (record.ok()) {
                        response->set_pinned(publisher_.pinned());
                        *response->mutable_plan() =
                            rpc::ToProto(record->plan, /*include_bitmaps=*/false);
                      }
                      reactor->Finish(rpc::ToGrpcStatus(record.status()));
                    });
  return reactor;
}

grpc::ServerWriteReactor<v1::WatchResponse>* PlacementService::Watch(grpc::CallbackServerContext*,
                                                                     const v1::WatchRequest*) {
  return new WatchReactor(publisher_.feed());
}

grpc::ServerUnaryReactor* PlacementService::History(grpc::CallbackServerContext* context,
                                                    const v1::HistoryRequest* request,
                                                    v1::HistoryResponse* response) {
  const int32_t page_size = request->page_size() == 0 ? kDefaultPageSize : request->page_size();
  if (page_size < 1 || page_size > kMaxPageSize) {
    return Finish(context,
                  Invalid("page_size", absl::StrCat("is ", page_size, "; 1 to ", kMaxPageSize)));
  }
  int64_t before = std::numeric_limits<int64_t>::max();
  if (!request->page_token().empty() &&
      (!absl::SimpleAtoi(request->page_token(), &before) || before < 1)) {
    return Finish(context, Invalid("page_token", "is not one that this service gave"));
  }
  // One more tells whether there is a next page.
  const absl::StatusOr<std::vector<PlanRecord>> records =
      publisher_.History(before, int64_t{page_size} + 1);
  if (!records.ok()) return Finish(context, records.status());
  for (size_t i = 0; i < records->size() && i < static_cast<size_t>(page_size); ++i) {
    *response->add_entries() = ToProto((*records)[i]);
  }
  if (records->size() > static_cast<size_t>(page_size)) {
    response->set_next_page_token(
        absl::StrCat((*records)[static_cast<size_t>(page_size) - 1].plan.epoch));
  }
  return Finish(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* PlacementService::Rollback(grpc::CallbackServerContext* context,
                                                     const v1::RollbackRequest* request,
                                                     v1::RollbackResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  publisher_.Rollback({.request_id = request->request_id(),
                       .to_epoch = request->to_epoch(),
                       .if_etag = request->if_etag()},
                      [reactor, response](const absl::StatusOr<PlanRecord>& record) {
                        if (record.ok()) {
                          *response->mutable_plan() =
                              rpc::ToProto(record->plan, /*include_bitmaps=*/false);
                        }
                        reactor->Finish(rpc::ToGrpcStatus(record.status()));
                      });
  return reactor;
}

grpc::ServerUnaryReactor* PlacementService::SetBudget(grpc::CallbackServerContext* context,
                                                      const v1::SetBudgetRequest* request,
                                                      v1::SetBudgetResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  publisher_.SetBudget({.request_id = request->request_id(),
                        .bytes = request->bytes(),
                        .if_etag = request->if_etag(),
                        .instance_id = request->instance_id()},
                       [reactor, response](const absl::StatusOr<PlanRecord>& record) {
                         if (record.ok()) {
                           *response->mutable_budget() = BudgetOf(*record);
                           *response->mutable_plan() =
                               rpc::ToProto(record->plan, /*include_bitmaps=*/false);
                         }
                         reactor->Finish(rpc::ToGrpcStatus(record.status()));
                       });
  return reactor;
}

}  // namespace isotherm
