#include "gpu_worker/service/prepare_reactor.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/rpc/status.h"
#include "common/rpc/step_convert.h"
#include "gpu_worker/service/worker_service.h"

namespace isotherm::gpu {
namespace {

constexpr std::chrono::milliseconds kReportEvery{200};

absl::Status RunPhase(StepEngine& engine, const v1::PrepareRequest& request,
                      const std::string& model_digest, v1::PrepareResponse* response,
                      const std::function<void(int64_t, int64_t)>& progress) {
  switch (request.phase()) {
    case v1::PREPARE_PHASE_PLAN: {
      ISOTHERM_ASSIGN_OR_RETURN(const PlacementPlan plan, rpc::FromProto(request.plan()));
      if (!plan.model_digest.empty() && plan.model_digest != model_digest) {
        return absl::FailedPreconditionError(
            absl::StrCat("the plan is for model ", plan.model_digest, ", this is ", model_digest));
      }
      response->set_epoch(plan.epoch);
      response->set_checksum(PlanChecksum(plan));
      return engine.Prepare(plan, progress);
    }
    case v1::PREPARE_PHASE_COMMIT:
      return engine.Commit(request.epoch());
    case v1::PREPARE_PHASE_ABORT:
      return engine.AbortPlan(request.epoch());
    case v1::PREPARE_PHASE_RETIRE:
      return engine.Retire(request.epoch());
    default:
      return absl::InvalidArgumentError(absl::StrCat("unknown phase ", request.phase()));
  }
}

}  // namespace

PrepareReactor::PrepareReactor(WorkerService& service, StepEngine& engine, PlanExecutor& plans,
                               std::string model_digest)
    : service_(service), engine_(engine), plans_(plans), model_digest_(std::move(model_digest)) {
  Begin();
}

void PrepareReactor::OnMessage(const v1::PrepareRequest& request) {
  if (!service_.AcceptTerm(request.term())) {
    outlet()->Close(rpc::ToGrpcStatus(absl::AbortedError(absl::StrCat(
        "term ", request.term(), " is over: a newer placement_service is in charge"))));
    return;
  }
  plans_.Post([&engine = engine_, digest = model_digest_, outlet = outlet(), request] {
    v1::PrepareResponse response;
    response.set_op_id(request.op_id());
    response.set_phase(request.phase());
    response.set_epoch(request.epoch());
    auto reported = std::chrono::steady_clock::now();
    const absl::Status status =
        RunPhase(engine, request, digest, &response, [&](int64_t done, int64_t total) {
          response.set_bytes_done(done);
          response.set_bytes_total(total);
          if (std::chrono::steady_clock::now() - reported < kReportEvery) return;
          reported = std::chrono::steady_clock::now();
          outlet->Send(response);
        });
    if (!status.ok()) {
      outlet->Close(rpc::ToGrpcStatus(status));
      return;
    }
    response.set_ready(true);
    outlet->Send(response);
  });
}

}  // namespace isotherm::gpu
