#include "placement_service/service/placement_service.h"

#include <pthread.h>

#include <limits>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/rpc/status.h"
#include "common/rpc/step_convert.h"
#include "placement_service/service/watch_reactor.h"

namespace isotherm {
namespace {

constexpr int32_t kDefaultPage = 50;
constexpr int32_t kMaxPage = 1000;

}  // namespace

PlacementServiceImpl::PlacementServiceImpl(PlanStore& store, PlanPublisher& publisher)
    : store_(store), publisher_(publisher) {
  thread_ = std::thread([this] {
    ::pthread_setname_np(::pthread_self(), "operations");
    Loop();
  });
}

PlacementServiceImpl::~PlacementServiceImpl() {
  {
    std::lock_guard lock(mu_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void PlacementServiceImpl::Loop() {
  std::unique_lock lock(mu_);
  while (true) {
    changed_.wait(lock, [this] { return stop_ || !operations_.empty(); });
    if (operations_.empty()) return;
    const std::function<void()> operation = std::move(operations_.front());
    operations_.pop_front();
    lock.unlock();
    operation();
    lock.lock();
  }
}

grpc::ServerUnaryReactor* PlacementServiceImpl::Later(grpc::CallbackServerContext* context,
                                                      std::function<absl::Status()> operation) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  {
    std::lock_guard lock(mu_);
    operations_.push_back([reactor, operation = std::move(operation)] {
      reactor->Finish(rpc::ToGrpcStatus(operation()));
    });
  }
  changed_.notify_all();
  return reactor;
}

grpc::ServerUnaryReactor* PlacementServiceImpl::GetPlacement(grpc::CallbackServerContext* context,
                                                             const v1::GetPlacementRequest* request,
                                                             v1::GetPlacementResponse* response) {
  return Later(context, [this, request, response]() -> absl::Status {
    absl::StatusOr<PlanRecord> record =
        request->epoch() == 0 ? publisher_.Live()
                              : store_.Get(request->epoch(), request->include_bitmaps());
    if (!record.ok()) return record.status();
    *response->mutable_plan() = rpc::ToProto(record->plan, request->include_bitmaps());
    return absl::OkStatus();
  });
}

grpc::ServerWriteReactor<v1::WatchResponse>* PlacementServiceImpl::Watch(
    grpc::CallbackServerContext*, const v1::WatchRequest*) {
  return new WatchReactor(publisher_.feed());
}

grpc::ServerUnaryReactor* PlacementServiceImpl::History(grpc::CallbackServerContext* context,
                                                        const v1::HistoryRequest* request,
                                                        v1::HistoryResponse* response) {
  return Later(context, [this, request, response]() -> absl::Status {
    int64_t before = std::numeric_limits<int64_t>::max();
    if (!request->page_token().empty() &&
        (!absl::SimpleAtoi(request->page_token(), &before) || before < 1)) {
      return absl::InvalidArgumentError("page_token is not one that History gave");
    }
    if (request->page_size() < 0 || request->page_size() > kMaxPage) {
      return absl::InvalidArgumentError(
          absl::StrCat("page_size is ", request->page_size(), "; 1 to ", kMaxPage));
    }
    const int32_t size = request->page_size() == 0 ? kDefaultPage : request->page_size();
    ISOTHERM_ASSIGN_OR_RETURN(const std::vector<PlanRecord> records, store_.History(before, size));
    for (const PlanRecord& record : records) {
      v1::HistoryEntry* entry = response->add_entries();
      *entry->mutable_plan() = rpc::ToProto(record.plan, /*include_bitmaps=*/false);
      entry->set_state(ToProto(record.state));
      entry->set_moved_neurons(record.moved_neurons);
      entry->set_message(record.message);
    }
    if (static_cast<int32_t>(records.size()) == size && records.back().plan.epoch > 1) {
      response->set_next_page_token(absl::StrCat(records.back().plan.epoch));
    }
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* PlacementServiceImpl::Rollback(grpc::CallbackServerContext* context,
                                                         const v1::RollbackRequest* request,
                                                         v1::RollbackResponse* response) {
  return Later(context, [this, request, response]() -> absl::Status {
    ISOTHERM_ASSIGN_OR_RETURN(
        const PlanRecord record,
        publisher_.Rollback(request->request_id(), request->to_epoch(), request->if_etag()));
    *response->mutable_plan() = rpc::ToProto(record.plan, /*include_bitmaps=*/false);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* PlacementServiceImpl::SetBudget(grpc::CallbackServerContext* context,
                                                          const v1::SetBudgetRequest* request,
                                                          v1::SetBudgetResponse* response) {
  return Later(context, [this, request, response]() -> absl::Status {
    ISOTHERM_ASSIGN_OR_RETURN(
        const BudgetOutcome outcome,
        publisher_.SetBudget(request->request_id(), request->bytes(), request->if_etag()));
    v1::Budget* budget = response->mutable_budget();
    budget->set_requested_bytes(outcome.requested_bytes);
    budget->set_effective_bytes(outcome.effective_bytes);
    budget->set_floor_bytes(0);
    budget->set_used_bytes(outcome.record.plan.used_bytes);
    *response->mutable_plan() = rpc::ToProto(outcome.record.plan, /*include_bitmaps=*/false);
    return absl::OkStatus();
  });
}

}  // namespace isotherm
