#include "gateway/service/generate_reactor.h"

#include <algorithm>
#include <random>
#include <utility>

#include "common/base/error_reason.h"
#include "common/base/status_macros.h"
#include "common/process/service_process.h"
#include "common/rpc/status.h"
#include "gateway/request/prepare_generation.h"
#include "gateway/request/validate.h"
#include "gateway/service/request_convert.h"

namespace isotherm {
namespace {

constexpr char kRequestIdKey[] = "x-request-id";

// The request's own, else the metadata's, else a new one.
std::string ChooseRequestId(const grpc::CallbackServerContext& context,
                            const std::string& requested) {
  if (!requested.empty()) return requested;
  const auto it = context.client_metadata().find(kRequestIdKey);
  if (it != context.client_metadata().end()) {
    std::string id(it->second.data(), it->second.size());
    if (ValidateRequestId(id).ok()) return id;
  }
  return RandomId();
}

Clock::TimePoint Deadline(const grpc::CallbackServerContext& context,
                          std::chrono::milliseconds max_time) {
  // Compared as time left: the two clocks have different origins, and "no deadline" is so far in
  // the future that it must not be converted.
  const Clock::TimePoint now = Clock::Real().Now();
  const auto wall_now = std::chrono::system_clock::now();
  if (context.deadline() >= wall_now + max_time) return now + max_time;
  return now + (context.deadline() - wall_now);
}

int64_t RandomSeed() {
  std::random_device device;
  return static_cast<int64_t>((uint64_t{device()} << 31) ^ device()) & INT64_MAX;
}

}  // namespace

GenerateReactor::GenerateReactor(grpc::CallbackServerContext& context, const ModelSlot& models,
                                 SchedulerThread& scheduler, const GenerateLimits& limits,
                                 std::atomic<int64_t>& open_answers)
    : context_(context),
      models_(models),
      scheduler_(scheduler),
      limits_(limits),
      open_answers_(open_answers) {
  ++open_answers_;
}

GenerateReactor* GenerateReactor::Start(grpc::CallbackServerContext& context, GenerateParams params,
                                        const ModelSlot& models, SchedulerThread& scheduler,
                                        const GenerateLimits& limits,
                                        std::atomic<int64_t>& open_answers) {
  auto* reactor = new GenerateReactor(context, models, scheduler, limits, open_answers);
  reactor->Begin(std::move(params));
  return reactor;
}

void GenerateReactor::Begin(GenerateParams params) {
  params.request_id = request_id_ = ChooseRequestId(context_, params.request_id);
  if (ValidateRequestId(request_id_).ok()) {
    context_.AddTrailingMetadata(kRequestIdKey, request_id_);
  } else {
    request_id_.clear();  // not to be repeated in metadata or errors
  }
  auto prepared = [&]() -> absl::StatusOr<PreparedGeneration> {
    ISOTHERM_ASSIGN_OR_RETURN(model_, models_.Find(params.model));
    return PrepareGeneration(params, *model_, RandomSeed(), Deadline(context_, limits_.max_time));
  }();
  queue_.emplace(Clock::Real(), [this] { Advance(); });
  if (!prepared.ok()) {
    queue_->Close(prepared.status());
    return;
  }
  refs_ += 2;  // the Generation's, until OnFinish, and the task's
  generation_.emplace(std::move(prepared->options), *model_, *queue_,
                      [this] { OnGenerationFinished(); });
  scheduler_.Post([this, request = std::move(prepared->request)](Scheduler& scheduler) mutable {
    handle_ = scheduler.Submit(std::move(request), &*generation_);
    Unref();
  });
}

void GenerateReactor::Advance() {
  absl::MutexLock lock(&mu_);
  if (writing_ || finished_) return;
  if (std::optional<OutputEvent> event = queue_->Pop(); event.has_value()) {
    response_ = ToProto(*event, request_id_, models_.served_name());
    writing_ = true;
    StartWrite(&response_);
    return;
  }
  if (const std::optional<absl::Status> status = queue_->FinalStatus(); status.has_value()) {
    finished_ = true;
    Finish(rpc::ToGrpcStatus(*status, request_id_));
  }
}

void GenerateReactor::OnWriteDone(bool ok) {
  {
    absl::MutexLock lock(&mu_);
    writing_ = false;
    if (!ok && !finished_) {
      finished_ = true;
      Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the client is gone"));
    }
  }
  if (ok) {
    Advance();
  } else {
    CancelRequest(absl::CancelledError("the client is gone"));
  }
}

void GenerateReactor::OnCancel() { CancelRequest(absl::CancelledError("cancelled by the client")); }

void GenerateReactor::CancelRequest(absl::Status why) {
  if (!generation_.has_value()) return;
  // Held until the task has run: the reactor may be done before.
  ++refs_;
  scheduler_.Post([this, why = std::move(why)](Scheduler& scheduler) {
    scheduler.Cancel(handle_, why);
    Unref();
  });
}

void GenerateReactor::OnGenerationFinished() {
  {
    absl::MutexLock lock(&mu_);
    if (!finished_) {
      ++refs_;
      linger_.Set(std::chrono::system_clock::now() + limits_.reader_timeout, [this](bool expired) {
        {
          absl::MutexLock alarm_lock(&mu_);
          if (expired && !done_) context_.TryCancel();
        }
        Unref();
      });
    }
  }
  Unref();
}

void GenerateReactor::OnDone() {
  {
    absl::MutexLock lock(&mu_);
    done_ = true;
  }
  --open_answers_;
  linger_.Cancel();
  Unref();
}

void GenerateReactor::Unref() {
  if (refs_.fetch_sub(1) == 1) delete this;
}

}  // namespace isotherm
