#include "placement_service/service/placement_service.h"

#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/error_reason.h"
#include "common/rpc/status.h"
#include "common/rpc/step_convert.h"
#include "placement_service/service/plan_convert.h"
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
  }
  return Finish(context, record.status());
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
                        .if_etag = request->if_etag()},
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
